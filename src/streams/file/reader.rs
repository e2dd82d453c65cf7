//! TOML to typed values with places: the only file that touches the TOML tree.
//!
//! A [`Section`] hands out a table's keys one by one and, when it is done, reports those that nobody asked for, with what was probably meant.
//! What must always hold: no key of a file is ignored, and every value knows its bytes in the file.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
};

use toml_edit::{Item, TableLike, Value};

use super::{
    diagnostic::{Diagnostic, Diagnostics},
    suggest::did_you_mean,
    time::parse_duration,
};

/// A value and its bytes in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub span: Range<usize>,
}

impl<T> Spanned<T> {
    /// Puts a value at a place.
    pub(crate) fn new(value: T, span: Range<usize>) -> Self {
        Self { value, span }
    }
}

/// A text of the file, with the bytes at which each of its own bytes stands.
pub(crate) type Text = Spanned<String>;

/// The place in the file of a part of a text: quotes and escapes counted.
pub(crate) fn place_in(file: &str, text: &Text, part: Range<usize>) -> Range<usize> {
    let raw = file.get(text.span.clone()).unwrap_or_default();
    let quotes =
        ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quotes| raw.starts_with(quotes)).unwrap_or("");
    let mut at = quotes.len();
    if quotes.len() == 3 {
        // A line break right after the opening quotes is no part of the text.
        at += ["\r\n", "\n"].into_iter().find(|end| raw[at..].starts_with(end)).map_or(0, str::len);
    }
    let escapes = quotes.starts_with('"');
    let mut places = Vec::with_capacity(text.value.len() + 1);
    let mut decoded = text.value.chars();
    while let Some(next) = raw[at..].chars().next() {
        let step = if escapes && next == '\\' { escape_length(&raw[at..]) } else { next.len_utf8() };
        let folded = escapes && next == '\\' && raw[at + 1..].starts_with([' ', '\t', '\r', '\n']);
        if !folded {
            let Some(character) = decoded.next() else { break };
            places.extend(std::iter::repeat_n(at, character.len_utf8()));
        }
        at += step;
    }
    let place = |byte: usize| text.span.start + places.get(byte).copied().unwrap_or(at.min(raw.len()));
    let start = place(part.start);
    start..place(part.end).max(start)
}

/// Bytes of the escape that the text begins with; a folded line break takes the spaces after it.
fn escape_length(raw: &str) -> usize {
    match raw.as_bytes().get(1) {
        Some(b'u') => 6,
        Some(b'U') => 10,
        Some(b'x') => 4,
        Some(b' ' | b'\t' | b'\r' | b'\n') => raw.len() - raw[1..].trim_start().len(),
        _ => 2,
    }
    .min(raw.len())
}

/// A table of the file, read key by key.
pub(crate) struct Section<'a> {
    table: &'a dyn TableLike,
    /// What the section is, for messages: "source `issued`".
    pub what: String,
    /// The section's own place: its header or braces.
    pub span: Range<usize>,
    diagnostics: &'a RefCell<Diagnostics>,
    asked: RefCell<Vec<&'static str>>,
    all_asked: Cell<bool>,
}

impl<'a> Section<'a> {
    /// Reads a table.
    pub(crate) fn new(
        table: &'a dyn TableLike,
        what: String,
        span: Range<usize>,
        diagnostics: &'a RefCell<Diagnostics>,
    ) -> Self {
        Self { table, what, span, diagnostics, asked: RefCell::default(), all_asked: Cell::new(false) }
    }

    /// Reports a mistake.
    pub(crate) fn report(&self, diagnostic: Diagnostic) {
        self.diagnostics.borrow_mut().push(diagnostic);
    }

    /// The place of a key's name.
    pub(crate) fn key_span(&self, key: &str) -> Range<usize> {
        self.table.get_key_value(key).and_then(|(key, _)| key.span()).unwrap_or_else(|| self.span.clone())
    }

    /// Whether the key is there.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|item| !item.is_none())
    }

    fn item(&self, key: &'static str) -> Option<&'a Item> {
        self.asked.borrow_mut().push(key);
        self.table.get(key).filter(|item| !item.is_none())
    }

    fn wrong(&self, key: &str, item: &Item, wanted: &str) {
        let span = item.span().unwrap_or_else(|| self.key_span(key));
        self.report(Diagnostic::new(span, format!("`{key}` should be {wanted}, found {}", item.type_name())));
    }

    /// Reports a key that must be there and is not.
    pub(crate) fn missing(&self, key: &str, help: impl Into<String>) {
        self.report(Diagnostic::new(self.span.clone(), format!("{} has no `{key}`", self.what)).help(help));
    }

    /// A text.
    pub(crate) fn text(&self, key: &'static str) -> Option<Text> {
        let item = self.item(key)?;
        match item.as_str() {
            Some(value) => Some(Spanned::new(value.to_owned(), item.span().unwrap_or_default())),
            None => {
                self.wrong(key, item, "a text");
                None
            }
        }
    }

    /// A text that must be there.
    pub(crate) fn required_text(&self, key: &'static str, help: &str) -> Option<Text> {
        if !self.has(key) {
            self.asked.borrow_mut().push(key);
            self.missing(key, help);
            return None;
        }
        self.text(key)
    }

    /// A whole number.
    pub(crate) fn integer(&self, key: &'static str) -> Option<Spanned<i64>> {
        let item = self.item(key)?;
        match item.as_integer() {
            Some(value) => Some(Spanned::new(value, item.span().unwrap_or_default())),
            None => {
                self.wrong(key, item, "a whole number");
                None
            }
        }
    }

    /// True or false.
    pub(crate) fn boolean(&self, key: &'static str) -> Option<Spanned<bool>> {
        let item = self.item(key)?;
        match item.as_bool() {
            Some(value) => Some(Spanned::new(value, item.span().unwrap_or_default())),
            None => {
                self.wrong(key, item, "true or false");
                None
            }
        }
    }

    /// A duration, in milliseconds.
    pub(crate) fn duration(&self, key: &'static str) -> Option<Spanned<i64>> {
        let text = self.text(key)?;
        match parse_duration(&text.value) {
            Some(ms) => Some(Spanned::new(ms, text.span)),
            None => {
                self.report(
                    Diagnostic::new(text.span, format!("`{}` is not a duration", text.value))
                        .help("write a number and a unit (ms, s, m, h, d): \"30s\", \"1h30m\""),
                );
                None
            }
        }
    }

    /// A list of texts; one text stands for a list of one.
    pub(crate) fn texts(&self, key: &'static str) -> Option<Vec<Text>> {
        let item = self.item(key)?;
        let span = |value: &Value| value.span().unwrap_or_default();
        match item.as_value() {
            Some(Value::String(value)) => {
                Some(vec![Spanned::new(value.value().clone(), item.span().unwrap_or_default())])
            }
            Some(Value::Array(list)) => {
                let mut texts = Vec::new();
                for value in list {
                    match value.as_str() {
                        Some(text) => texts.push(Spanned::new(text.to_owned(), span(value))),
                        None => self.report(Diagnostic::new(
                            span(value),
                            format!("`{key}` should be a list of texts, found {} in it", value.type_name()),
                        )),
                    }
                }
                Some(texts)
            }
            _ => {
                self.wrong(key, item, "a list of texts");
                None
            }
        }
    }

    /// A table of names and texts, in the order of the file.
    pub(crate) fn map(&self, key: &'static str) -> Option<Vec<(Text, Text)>> {
        let item = self.item(key)?;
        let Some(table) = item.as_table_like() else {
            self.wrong(key, item, "a table of names and texts");
            return None;
        };
        let mut map = Vec::new();
        for (name, item) in table.iter() {
            let key_span = table.get_key_value(name).and_then(|(key, _)| key.span()).unwrap_or_default();
            match item.as_str() {
                Some(text) => map.push((
                    Spanned::new(name.to_owned(), key_span),
                    Spanned::new(text.to_owned(), item.span().unwrap_or_default()),
                )),
                None => self.report(Diagnostic::new(
                    item.span().unwrap_or(key_span),
                    format!("`{key}.{name}` should be a text, found {}", item.type_name()),
                )),
            }
        }
        Some(map)
    }

    /// A table within the table.
    pub(crate) fn section(&self, key: &'static str) -> Option<Section<'a>> {
        let item = self.item(key)?;
        let Some(table) = item.as_table_like() else {
            self.wrong(key, item, "a table");
            return None;
        };
        let span = item.span().unwrap_or_else(|| self.key_span(key));
        Some(Section::new(table, format!("`{key}` of {}", self.what), span, self.diagnostics))
    }

    /// Whether the key holds a table (and not a text, where both are allowed).
    pub(crate) fn is_table(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|item| item.as_table_like().is_some())
    }

    /// The named tables under a key (`[source.a]`, `[source.b]`).
    pub(crate) fn sections(&self, key: &'static str) -> Vec<(Text, Section<'a>)> {
        let Some(item) = self.item(key) else { return Vec::new() };
        let Some(table) = item.as_table_like() else {
            self.wrong(key, item, &format!("tables with names, `[{key}.name]`"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (name, item) in table.iter() {
            let key_span = table.get_key_value(name).and_then(|(key, _)| key.span()).unwrap_or_default();
            match item.as_table_like() {
                Some(inner) => sections.push((
                    Spanned::new(name.to_owned(), key_span.clone()),
                    Section::new(inner, format!("{key} `{name}`"), key_span, self.diagnostics),
                )),
                None => self.report(
                    Diagnostic::new(
                        key_span,
                        format!("`{key}.{name}` should be a table, found {}", item.type_name()),
                    )
                    .help(format!("every {key} has a name of its own: `[{key}.name]`")),
                ),
            }
        }
        sections
    }

    /// The tables of a list (`[[test]]`, or a list of inline tables).
    pub(crate) fn list(&self, key: &'static str) -> Vec<Section<'a>> {
        let Some(item) = self.item(key) else { return Vec::new() };
        let what = format!("`{key}` of {}", self.what.rsplit(" of ").next().unwrap_or_default());
        let make = |table: &'a dyn TableLike, span: Option<Range<usize>>| {
            let span = span.unwrap_or_else(|| self.key_span(key));
            Section::new(table, what.clone(), span, self.diagnostics)
        };
        match item {
            Item::ArrayOfTables(tables) => tables.iter().map(|table| make(table, table.span())).collect(),
            Item::Value(Value::Array(values)) => {
                let mut sections = Vec::new();
                for value in values {
                    match value.as_inline_table() {
                        Some(table) => sections.push(make(table, value.span())),
                        None => self.wrong(key, item, "a list of tables"),
                    }
                }
                sections
            }
            _ => {
                self.wrong(key, item, "a list of tables");
                Vec::new()
            }
        }
    }

    /// A table of names and whole numbers.
    pub(crate) fn numbers(&self, key: &'static str) -> Vec<(String, i64)> {
        let Some(item) = self.item(key) else { return Vec::new() };
        let Some(table) = item.as_table_like() else {
            self.wrong(key, item, "a table of names and whole numbers");
            return Vec::new();
        };
        let mut numbers = Vec::new();
        for (name, item) in table.iter() {
            match item.as_integer() {
                Some(value) => numbers.push((name.to_owned(), value)),
                None => self.wrong(key, item, "a table of names and whole numbers"),
            }
        }
        numbers
    }

    /// Anything.
    pub(crate) fn any(&self, key: &'static str) -> Option<&'a Item> {
        self.item(key)
    }

    /// Whatever the section holds, none of it is to be reported as unknown.
    pub(crate) fn ask_for_all(&self) {
        self.all_asked.set(true);
    }

    /// Reports every key that was not asked for. Call when the section is read.
    pub(crate) fn finish(self) {
        let asked = self.asked.borrow();
        for (key, _) in self.table.iter() {
            if self.all_asked.get() || asked.contains(&key) {
                continue;
            }
            let diagnostic = Diagnostic::new(self.key_span(key), format!("{} has no key `{key}`", self.what));
            self.report(match did_you_mean(key, asked.iter().copied()) {
                Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                None => {
                    let mut known: Vec<&str> = asked.clone();
                    known.sort_unstable();
                    known.dedup();
                    diagnostic.help(format!("its keys are: {}", known.join(", ")))
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_texts_are_found_behind_quotes_and_escapes() {
        let cases = [
            ("x = \"abc def\"", "def"),
            ("x = 'abc def'", "def"),
            ("x = \"a \\\"b\\\" def\"", "def"),
            ("x = \"\\u00e9 def\"", "def"),
            ("x = \"\"\"\nabc\ndef\"\"\"", "def"),
            ("x = \"\"\"abc \\\n   def\"\"\"", "def"),
            ("x = \"é def\"", "def"),
        ];
        for (file, wanted) in cases {
            let document = toml_edit::Document::parse(file).unwrap();
            let item = document.get("x").unwrap();
            let text = Spanned::new(item.as_str().unwrap().to_owned(), item.span().unwrap());
            let at = text.value.find(wanted).unwrap();
            assert_eq!(&file[place_in(file, &text, at..at + wanted.len())], wanted, "{file}");
        }
    }
}
