//! Text to syntax tree: sqlparser with the operator precedence of SQLite.
//!
//! Every mistake comes back with the bytes at which it stands. What must always hold: operators bind as SQLite binds them, so that
//! an expression copied into `sqlite3` means the same.

use std::ops::Range;

use sqlparser::{
    ast::{Expr, Spanned},
    dialect::Dialect,
    keywords::Keyword,
    parser::{Parser, ParserError},
    tokenizer::{Location, Span, Token, Tokenizer},
};

use super::{ExpressionError, Result};

/// How deep an expression may nest.
const DEPTH_MAX: usize = 60;

/// The SQL of topology files.
#[derive(Debug)]
pub(crate) struct TopologySql;

impl Dialect for TopologySql {
    fn is_identifier_start(&self, ch: char) -> bool {
        ch.is_alphabetic() || ch == '_'
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        ch.is_alphanumeric() || ch == '_'
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        ch == '"'
    }

    fn supports_filter_during_aggregation(&self) -> bool {
        true
    }

    /// SQLite's table of precedence, where sqlparser's default differs: `||` and `->` bind tightest, `<` tighter than `=`,
    /// and `=`, `IS`, `IN`, `LIKE`, `BETWEEN` all alike.
    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        const EQUALITY: u8 = 20;
        const ORDER: u8 = 21;
        const JOIN: u8 = 45;
        let token = parser.peek_token_ref();
        let precedence = match &token.token {
            Token::Lt | Token::LtEq | Token::Gt | Token::GtEq => ORDER,
            Token::StringConcat | Token::Arrow | Token::LongArrow => JOIN,
            Token::Word(word) if matches!(word.keyword, Keyword::IS | Keyword::LIKE) => EQUALITY,
            Token::Word(word) if word.keyword == Keyword::NOT => match &parser.peek_nth_token_ref(1).token {
                Token::Word(next) if next.keyword == Keyword::LIKE => EQUALITY,
                _ => return None,
            },
            _ => return None,
        };
        Some(Ok(precedence))
    }
}

/// An expression's text, with what is needed to turn the parser's lines and columns into bytes.
pub(crate) struct Source<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> Source<'a> {
    /// Takes the text.
    pub(crate) fn new(text: &'a str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, line_starts }
    }

    /// The whole text.
    pub(crate) fn whole(&self) -> Range<usize> {
        0..self.text.len()
    }

    /// The bytes of a node of the tree; the whole text where the parser knows no place.
    pub(crate) fn span(&self, node: &impl Spanned) -> Range<usize> {
        self.bytes(node.span())
    }

    /// The bytes of a span of the parser.
    pub(crate) fn bytes(&self, span: Span) -> Range<usize> {
        if span.start.line == 0 {
            return self.whole();
        }
        let start = self.byte(span.start);
        start..self.byte(span.end).max(start)
    }

    fn byte(&self, location: Location) -> usize {
        let line = location.line.saturating_sub(1) as usize;
        let Some(start) = self.line_starts.get(line) else { return self.text.len() };
        let column = location.column.saturating_sub(1) as usize;
        let rest = &self.text[*start..];
        start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at)
    }
}

/// Parses one expression, all of the text.
pub(crate) fn parse(source: &Source<'_>) -> Result<Expr> {
    let text = source.text;
    if text.trim().is_empty() {
        return Err(ExpressionError::new(source.whole(), "the expression is empty"));
    }
    let tokens = Tokenizer::new(&TopologySql, text).tokenize_with_location().map_err(|error| {
        let at = source.byte(error.location).min(text.len());
        ExpressionError::new(at..text.len(), decapitalize(&error.message))
    })?;
    let mut parser =
        Parser::new(&TopologySql).with_recursion_limit(DEPTH_MAX).with_tokens_with_locations(tokens);
    let here = |parser: &Parser| {
        let next = parser.peek_token();
        if next.token == Token::EOF { text.len()..text.len() } else { source.bytes(next.span) }
    };
    let expr = parser.parse_expr().map_err(|error| match error {
        ParserError::RecursionLimitExceeded => {
            ExpressionError::new(source.whole(), format!("the expression nests deeper than {DEPTH_MAX}"))
                .help("split it over two stream nodes")
        }
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
            let (message, place) = split_place(&message);
            let span = place.map_or_else(|| here(&parser), |location| point(source, location));
            ExpressionError::new(span, decapitalize(message))
        }
    })?;
    let next = parser.peek_token();
    if next.token != Token::EOF {
        return Err(ExpressionError::new(
            here(&parser),
            format!("unexpected `{}` after the expression", next.token),
        ));
    }
    Ok(expr)
}

/// Takes the ` at Line: 1, Column: 5` off a message of the parser.
fn split_place(message: &str) -> (&str, Option<Location>) {
    let Some((head, tail)) = message.rsplit_once(" at Line: ") else { return (message, None) };
    let Some((line, column)) = tail.split_once(", Column: ") else { return (message, None) };
    match (line.trim().parse(), column.trim().parse()) {
        (Ok(line), Ok(column)) => (head, Some(Location { line, column })),
        _ => (message, None),
    }
}

/// The word or sign that begins at a place.
fn point(source: &Source<'_>, location: Location) -> Range<usize> {
    let start = source.byte(location);
    let rest = &source.text[start..];
    let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
    let length = if word == 0 { rest.chars().next().map_or(0, char::len_utf8) } else { word };
    start..start + length
}

fn decapitalize(message: &str) -> String {
    let message = message.strip_prefix("sql parser error: ").unwrap_or(message);
    let mut chars = message.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grouped(text: &str) -> String {
        fn show(expr: &Expr) -> String {
            match expr {
                Expr::BinaryOp { left, op, right } => format!("({} {op} {})", show(left), show(right)),
                Expr::Nested(inner) => show(inner),
                Expr::IsNull(inner) => format!("({} IS NULL)", show(inner)),
                Expr::UnaryOp { op, expr } => format!("({op} {})", show(expr)),
                other => other.to_string(),
            }
        }
        show(&parse(&Source::new(text)).unwrap())
    }

    #[test]
    fn operators_bind_as_in_sqlite() {
        let cases = [
            ("a || b = c", "((a || b) = c)"),
            ("a * b || c", "(a * (b || c))"),
            ("a = b < c", "(a = (b < c))"),
            ("a < b = c", "((a < b) = c)"),
            ("not a = b and c or d", "(((NOT (a = b)) AND c) OR d)"),
            ("a + b * c - d", "((a + (b * c)) - d)"),
            ("a = b is null", "((a = b) IS NULL)"),
            ("a < b is null", "((a < b) IS NULL)"),
        ];
        for (text, expected) in cases {
            assert_eq!(grouped(text), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_have_a_place() {
        let cases = [
            ("a +", 3..3),
            ("a b", 2..3),
            ("'abc", 0..4),
            ("f(a,", 4..4),
            ("", 0..0),
            ("a = = b", 4..5),
            ("über + + * 2", 10..11),
        ];
        for (text, span) in cases {
            let error = parse(&Source::new(text)).unwrap_err();
            assert_eq!(error.span, span, "{text}: {error}");
        }
    }
}
