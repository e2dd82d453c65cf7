//! What is wrong with a configuration, said so that the reader can repair it without looking anything up.
//!
//! A [`Problem`] names field, value, the place it came from and the remedy. All problems of a start are reported at
//! once ([`ConfigError`]); nothing is started before there are none. Secret values are never part of the text.

use std::fmt;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, as `section.key`; empty when a whole file is meant.
    pub field: String,
    /// The value as written (secrets masked); empty when there is none.
    pub value: String,
    /// `file:line`, an environment variable, or what set it.
    pub origin: String,
    /// What is wrong with it.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.field.is_empty(), self.value.is_empty()) {
            (true, _) => write!(f, "{}: {}", self.origin, self.message)?,
            (false, true) => write!(f, "{}: {}: {}", self.origin, self.field, self.message)?,
            (false, false) => {
                write!(f, "{}: {} = {}: {}", self.origin, self.field, self.value, self.message)?
            }
        }
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "\n    {}", self.remedy) }
    }
}

/// All mistakes of one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "the configuration has a mistake:")?,
            n => writeln!(f, "the configuration has {n} mistakes:")?,
        }
        for problem in &self.0 {
            writeln!(f, "  {problem}")?;
        }
        write!(f, "Nothing was started. `sluice config show` prints every key with its value and origin.")
    }
}

impl std::error::Error for ConfigError {}

/// The candidate nearest to `word`, when it is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(2);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, with two rows.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typing_mistakes_and_nothing_else() {
        let keys = ["http.listen", "http.max_in_flight", "kafka.properties"];
        for (word, expected) in [
            ("http.listn", Some("http.listen")),
            ("http.max_inflight", Some("http.max_in_flight")),
            ("htp.listen", Some("http.listen")),
            ("zzz", None),
        ] {
            assert_eq!(nearest(word, keys), expected, "{word}");
        }
    }
}
