//! Mistakes in a topology file, shown as a compiler shows them: `file:line:col`, the line, a caret, advice.
//!
//! Every step of loading collects into one [`Diagnostics`], so that a person sees all mistakes at once. What must always hold: every
//! mistake has a place in the file, and a file with a mistake does not load.

use std::{fmt, ops::Range};

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong.
    pub message: String,
    /// Where, as bytes of the file.
    pub span: Range<usize>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A mistake at a place.
    pub fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { message: message.into(), span, help: None }
    }

    /// Adds advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// The mistakes of one file.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    file: String,
    text: String,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// None yet, for a file of that name and text.
    pub fn new(file: impl Into<String>, text: impl Into<String>) -> Self {
        Self { file: file.into(), text: text.into(), list: Vec::new() }
    }

    /// Adds a mistake.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        if !self.list.contains(&diagnostic) {
            self.list.push(diagnostic);
        }
    }

    /// The mistakes, in the order of the file.
    pub fn list(&self) -> &[Diagnostic] {
        &self.list
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Itself as an error, unless it is empty.
    pub fn into_result(mut self) -> Result<(), Diagnostics> {
        self.list.sort_by_key(|diagnostic| (diagnostic.span.start, diagnostic.span.end));
        if self.list.is_empty() { Ok(()) } else { Err(self) }
    }

    /// The start of the character that a byte is in.
    fn floor(&self, byte: usize) -> usize {
        let byte = byte.min(self.text.len());
        (0..=byte).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0)
    }

    /// The line and column (characters, from 1) of a byte, and that line's text.
    fn place(&self, byte: usize) -> (usize, usize, &str) {
        let byte = self.floor(byte);
        let start = self.text[..byte].rfind('\n').map_or(0, |at| at + 1);
        let line = self.text[..start].matches('\n').count() + 1;
        let end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        (line, self.text[start..byte].chars().count() + 1, self.text[start..end].trim_end_matches('\r'))
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let (line, column, text) = self.place(diagnostic.span.start);
            writeln!(f, "{}:{line}:{column}: {}", self.file, diagnostic.message)?;
            let number = line.to_string();
            let margin = " ".repeat(number.len());
            writeln!(f, "{margin} |")?;
            writeln!(f, "{number} | {text}")?;
            // Tabs stay tabs, so that the caret stands under its place whatever their width.
            let before: String =
                text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let rest = text.chars().count().saturating_sub(column - 1);
            let end = self.floor(diagnostic.span.end);
            let start = self.floor(diagnostic.span.start.min(end));
            let width = self.text[start..end].chars().count().min(rest).max(1);
            writeln!(f, "{margin} | {before}{}", "^".repeat(width))?;
            if let Some(help) = &diagnostic.help {
                writeln!(f, "{margin} = {help}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_shown_with_its_line_and_a_caret() {
        let text = "a = 1\n\tfrom = \"isued\"\n";
        let mut diagnostics = Diagnostics::new("x.toml", text);
        diagnostics.push(Diagnostic::new(14..21, "unknown node `isued`").help("did you mean `issued`?"));
        diagnostics.push(Diagnostic::new(0..1, "unknown key `a`"));
        let shown = diagnostics.into_result().unwrap_err().to_string();
        let expected = "\
x.toml:1:1: unknown key `a`
  |
1 | a = 1
  | ^

x.toml:2:9: unknown node `isued`
  |
2 | \tfrom = \"isued\"
  | \t       ^^^^^^^
  = did you mean `issued`?
";
        assert_eq!(shown, expected);
    }
}
