//! Reads typed values out of the merged layers and notes every mistake instead of stopping at the first.
//!
//! Each getter returns something usable even when the value is wrong, so that validation goes on; the caller must
//! not use the result when [`Reader::finish`] reports problems. The reader also remembers which keys were asked for:
//! a test compares them with the default file, both ways.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use super::{
    layers::{Layers, Raw, RawValue},
    problem::{ConfigError, Problem, nearest},
};

/// Keys whose value (or a part of it) must not be shown.
const SECRETS: [&str; 4] = ["admin.token", "redis.url", "ledger.url", "kafka.properties"];

/// Typed access to the merged layers.
pub struct Reader {
    layers: Layers,
    /// Keys asked for so far.
    pub read: BTreeSet<String>,
    /// Keys whose value has the wrong type: what else is wrong with them only follows from that.
    mistyped: BTreeSet<String>,
    data_dir: String,
}

impl Reader {
    /// Reads from these layers.
    pub fn new(layers: Layers) -> Self {
        let mut reader =
            Self { layers, read: BTreeSet::new(), mistyped: BTreeSet::new(), data_dir: String::new() };
        reader.data_dir = reader.string("data_dir");
        reader
    }

    /// The value of a key; every key stands in the default file.
    fn raw(&mut self, key: &str) -> Raw {
        self.read.insert(key.into());
        self.layers.values.get(key).unwrap_or_else(|| panic!("config/default.toml lacks {key}")).clone()
    }

    /// Notes a mistake in the type of a value.
    fn mistyped(&mut self, key: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.problem(key, message, remedy);
        self.mistyped.insert(key.into());
    }

    /// Notes a mistake in the value of a key.
    pub fn problem(&mut self, key: &str, message: impl Into<String>, remedy: impl Into<String>) {
        if self.mistyped.contains(key) {
            return;
        }
        let raw = self.raw(key);
        self.layers.problems.push(Problem {
            field: key.into(),
            value: shown(key, &raw.value),
            origin: raw.origin,
            message: message.into(),
            remedy: remedy.into(),
        });
    }

    /// Text.
    pub fn string(&mut self, key: &str) -> String {
        match self.raw(key).value {
            RawValue::Text(text) | RawValue::Toml(toml::Value::String(text)) => text,
            RawValue::Toml(other) => {
                let remedy = format!("Write it in quotes: {} = \"...\".", leaf(key));
                self.mistyped(key, format!("must be text, not {}", article(&other)), remedy);
                String::new()
            }
        }
    }

    /// Text that must not be empty, with `{data_dir}` put in.
    pub fn path(&mut self, key: &str) -> PathBuf {
        let text = self.string(key);
        if text.is_empty() {
            self.problem(
                key,
                "must not be empty",
                "Name a file or directory, or remove the key for the default.",
            );
        }
        PathBuf::from(self.expand(&text))
    }

    /// Puts the data directory where a value says `{data_dir}`.
    pub fn expand(&self, text: &str) -> String {
        text.replace("{data_dir}", &self.data_dir)
    }

    /// A whole number within a range.
    pub fn integer(&mut self, key: &str, range: RangeInclusive<i64>) -> i64 {
        let value = match self.raw(key).value {
            RawValue::Toml(toml::Value::Integer(number)) => Some(number),
            RawValue::Text(text) => text.trim().replace('_', "").parse().ok(),
            RawValue::Toml(_) => None,
        };
        let wanted = format!("Write a whole number from {} to {}.", range.start(), range.end());
        match value {
            Some(number) if range.contains(&number) => number,
            Some(_) => {
                self.problem(key, "is out of range", wanted);
                *range.start()
            }
            None => {
                let message = match self.raw(key).value {
                    RawValue::Toml(other) => format!("must be a whole number, not {}", article(&other)),
                    RawValue::Text(_) => "must be a whole number".into(),
                };
                self.mistyped(key, message, wanted);
                *range.start()
            }
        }
    }

    /// A count or size.
    pub fn size(&mut self, key: &str, range: RangeInclusive<i64>) -> usize {
        debug_assert!(*range.start() >= 0);
        self.integer(key, range) as usize
    }

    /// A time in whole milliseconds.
    pub fn millis(&mut self, key: &str, range: RangeInclusive<i64>) -> Duration {
        debug_assert!(*range.start() >= 0);
        Duration::from_millis(self.integer(key, range) as u64)
    }

    /// True or false.
    pub fn boolean(&mut self, key: &str) -> bool {
        let value = match self.raw(key).value {
            RawValue::Toml(toml::Value::Boolean(truth)) => Some(truth),
            RawValue::Text(text) => text.trim().parse().ok(),
            RawValue::Toml(_) => None,
        };
        value.unwrap_or_else(|| {
            self.mistyped(key, "must be true or false", "Write true or false, without quotes.");
            false
        })
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> T {
        let text = self.string(key);
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return *choice;
        }
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let remedy = match nearest(&text, choices.iter().map(|(name, _)| *name)) {
            Some(meant) => format!("Did you mean \"{meant}\"? Choices: {}.", names.join(", ")),
            None => format!("Choose one of {}.", names.join(", ")),
        };
        self.problem(key, "is not one of the choices", remedy);
        choices[0].1
    }

    /// A list of texts; in the environment separated by commas.
    pub fn strings(&mut self, key: &str) -> Vec<String> {
        let value = match self.raw(key).value {
            RawValue::Text(text) if text.trim_start().starts_with('[') => inline(&text),
            RawValue::Text(text) => {
                return text
                    .split(',')
                    .map(|item| item.trim().to_owned())
                    .filter(|item| !item.is_empty())
                    .collect();
            }
            RawValue::Toml(value) => Some(value),
        };
        let items = match value {
            Some(toml::Value::Array(items)) => items
                .into_iter()
                .map(|item| if let toml::Value::String(text) = item { Some(text) } else { None })
                .collect::<Option<Vec<_>>>(),
            _ => None,
        };
        items.unwrap_or_else(|| {
            let remedy = format!("Write {} = [\"one\", \"two\"].", leaf(key));
            self.mistyped(key, "must be a list of texts", remedy);
            Vec::new()
        })
    }

    /// A table of texts, numbers and truth values, all handed on as text.
    pub fn table(&mut self, key: &str) -> BTreeMap<String, String> {
        let value = match self.raw(key).value {
            RawValue::Text(text) if text.trim().is_empty() => return BTreeMap::new(),
            RawValue::Text(text) => inline(&text),
            RawValue::Toml(value) => Some(value),
        };
        let remedy = format!("Write {} = {{ \"name\" = \"value\" }}.", leaf(key));
        let Some(toml::Value::Table(table)) = value else {
            self.mistyped(key, "must be a table", remedy);
            return BTreeMap::new();
        };
        let mut texts = BTreeMap::new();
        for (name, value) in table {
            match value {
                toml::Value::String(text) => drop(texts.insert(name, text)),
                toml::Value::Integer(number) => drop(texts.insert(name, number.to_string())),
                toml::Value::Boolean(truth) => drop(texts.insert(name, truth.to_string())),
                toml::Value::Float(number) => drop(texts.insert(name, number.to_string())),
                // security.protocol = "SSL" without quotes around the name is a table in TOML.
                _ => self.problem(
                    key,
                    format!("the value of `{name}` must be text"),
                    "Names with dots need quotes: \"security.protocol\" = \"SSL\".",
                ),
            }
        }
        texts
    }

    /// The problems found, if any.
    pub fn finish(self) -> Result<(), ConfigError> {
        let problems = self.layers.problems;
        if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
    }
}

/// A value as it may be shown: secrets masked, text in quotes.
pub fn shown(key: &str, value: &RawValue) -> String {
    let text = match value {
        RawValue::Text(text) => format!("\"{text}\""),
        RawValue::Toml(value) => value.to_string(),
    };
    if !SECRETS.contains(&key) {
        return text;
    }
    match key {
        "redis.url" | "ledger.url" => mask_password(&text),
        _ if text == "\"\"" || text == "{}" => text,
        _ => "(hidden)".into(),
    }
}

/// Replaces the password of `scheme://user:password@host`.
fn mask_password(url: &str) -> String {
    let Some(start) = url.find("://").map(|at| at + 3) else { return url.into() };
    if url.contains("sqlite:") {
        return url.into();
    }
    // The last @: a password may itself hold one, or a slash.
    match url[start..].rfind('@').map(|at| start + at) {
        Some(at) => {
            let user = url[start..at].split(':').next().unwrap_or_default();
            format!("{}{user}:***{}", &url[..start], &url[at..])
        }
        None => url.into(),
    }
}

fn inline(text: &str) -> Option<toml::Value> {
    toml::from_str::<toml::Table>(&format!("value = {text}")).ok()?.remove("value")
}

fn leaf(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn article(value: &toml::Value) -> &'static str {
    match value {
        toml::Value::String(_) => "text",
        toml::Value::Integer(_) => "a number",
        toml::Value::Float(_) => "a number with a fraction",
        toml::Value::Boolean(_) => "true or false",
        toml::Value::Datetime(_) => "a date",
        toml::Value::Array(_) => "a list",
        toml::Value::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked() {
        for (url, expected) in [
            ("postgres://user:pw@host:1/db", "postgres://user:***@host:1/db"),
            ("postgres://user:p@w@host/db", "postgres://user:***@host/db"),
            ("postgres://user:p/w@host/db", "postgres://user:***@host/db"),
            ("redis://:pw@host", "redis://:***@host"),
            ("redis://host:1", "redis://host:1"),
            ("sqlite://data/a@b.sqlite", "sqlite://data/a@b.sqlite"),
        ] {
            assert_eq!(mask_password(url), expected);
        }
        assert_eq!(shown("admin.token", &RawValue::Text("hunter2".into())), "(hidden)");
    }
}
