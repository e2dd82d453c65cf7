//! The layers of the configuration, merged into one table of `section.key` -> value and origin.
//!
//! Default file < file < environment (< what a command sets itself, as `demo` does). The default file is also the
//! list of keys: whatever another layer names that does not stand there is a [`Problem`]. Values keep the place
//! they were written at; turning them into types is the reader's work, next door.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::{Problem, nearest};

/// The bottom layer, compiled in so that the binary runs from any directory.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// Prefix of environment variables that set a key.
pub const ENV_PREFIX: &str = "SLUICE__";

/// A value with the place it was written at.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw {
    /// The value.
    pub value: RawValue,
    /// `file:line`, an environment variable, or what set it.
    pub origin: String,
}

/// A value before it has a type.
#[derive(Clone, Debug, PartialEq)]
pub enum RawValue {
    /// Written in a file: typed.
    Toml(toml::Value),
    /// From the environment or a command: text, read as whatever type the key has.
    Text(String),
}

/// Merged layers, and the mistakes found while merging.
#[derive(Clone, Debug)]
pub struct Layers {
    /// The winning value of every key.
    pub values: BTreeMap<String, Raw>,
    /// Unknown keys, unreadable files.
    pub problems: Vec<Problem>,
    /// Directory of the configuration file.
    pub directory: Option<PathBuf>,
}

impl Layers {
    /// The default file alone.
    pub fn defaults() -> Self {
        let (values, problems) = parse(DEFAULT_TOML, "config/default.toml", &[]);
        assert!(problems.is_empty(), "the default configuration is part of the program: {problems:?}");
        Self { values, problems, directory: None }
    }

    /// Lays a file over what is there.
    pub fn file(mut self, path: &Path) -> Self {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                self.directory = path.parent().map(Path::to_path_buf);
                self.text(&text, &path.display().to_string())
            }
            Err(error) => {
                self.problems.push(Problem {
                    field: String::new(),
                    value: String::new(),
                    origin: path.display().to_string(),
                    message: format!("the configuration file cannot be read: {error}"),
                    remedy: "Give an existing file with --config, or leave --config out for the defaults."
                        .into(),
                });
                self
            }
        }
    }

    /// Lays TOML text over what is there.
    pub fn text(mut self, text: &str, name: &str) -> Self {
        let tables: Vec<String> = self
            .values
            .iter()
            .filter(|(_, raw)| matches!(raw.value, RawValue::Toml(toml::Value::Table(_))))
            .map(|(key, _)| key.clone())
            .collect();
        let (values, problems) = parse(text, name, &tables);
        self.problems.extend(problems);
        for (key, raw) in values {
            self.put(key, raw);
        }
        self
    }

    /// Lays `SLUICE__SECTION__KEY` variables over what is there.
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        for (name, value) in variables {
            if let Some(rest) = name.strip_prefix(ENV_PREFIX) {
                let key = rest.to_lowercase().replace("__", ".");
                self.put(key, Raw { value: RawValue::Text(value), origin: name });
            }
        }
        self
    }

    /// Sets one key, as a command does for itself.
    pub fn set(mut self, key: &str, value: impl Into<String>, origin: &str) -> Self {
        self.put(key.into(), Raw { value: RawValue::Text(value.into()), origin: origin.into() });
        self
    }

    fn put(&mut self, key: String, raw: Raw) {
        if let Some(value) = self.values.get_mut(&key) {
            *value = raw;
            return;
        }
        let meant = nearest(&key, self.values.keys().map(String::as_str));
        let remedy = match meant {
            Some(meant) if raw.origin.starts_with(ENV_PREFIX) => {
                format!("Did you mean {}?", environment_name(meant))
            }
            Some(meant) => format!("Did you mean `{meant}`?"),
            None => match key.split_once('.') {
                Some((section, _)) if self.section(section).next().is_some() => {
                    let known: Vec<&str> = self.section(section).collect();
                    format!("[{section}] has: {}.", known.join(", "))
                }
                _ => "config/default.toml lists every key there is (`sluice config show`).".into(),
            },
        };
        self.problems.push(Problem {
            field: key,
            value: String::new(),
            origin: raw.origin,
            message: "there is no such key".into(),
            remedy,
        });
    }

    fn section<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a str> {
        self.values.keys().filter_map(move |key| key.strip_prefix(section)?.strip_prefix('.'))
    }
}

/// The variable that sets a key.
pub fn environment_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// Reads TOML into `section.key` -> value with the line it stands on. `tables` names the keys whose value is itself
/// a table; every other table is a section.
fn parse(text: &str, name: &str, tables: &[String]) -> (BTreeMap<String, Raw>, Vec<Problem>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let problems = errors
        .into_iter()
        .map(|error| {
            let line = line_of(text, error.span().map_or(0, |span| span.start));
            Problem {
                field: String::new(),
                value: String::new(),
                origin: format!("{name}:{line}"),
                message: format!("this is not TOML: {}", error.message().trim().replace('\n', ", ")),
                // The line itself is not shown: it may hold a secret.
                remedy: "Texts stand in quotes, sections in [brackets]; config/default.toml shows each form."
                    .into(),
            }
        })
        .collect();
    let mut values = BTreeMap::new();
    collect(table.get_ref(), "", text, name, tables, &mut values);
    (values, problems)
}

fn collect(
    table: &DeTable<'_>,
    prefix: &str,
    text: &str,
    name: &str,
    tables: &[String],
    values: &mut BTreeMap<String, Raw>,
) {
    for (key, value) in table {
        let path = format!("{prefix}{}", key.get_ref());
        match value.get_ref() {
            // A section: a table written as [name]. An inline table `{}` in the default file marks a key whose value
            // is a table, and such a key may be written either way.
            DeValue::Table(inner) if !is_inline(text, value) && !tables.contains(&path) => {
                collect(inner, &format!("{path}."), text, name, tables, values);
            }
            _ => {
                let line = line_of(text, key.span().start);
                let raw = Raw { value: RawValue::Toml(to_value(value)), origin: format!("{name}:{line}") };
                values.insert(path, raw);
            }
        }
    }
}

fn is_inline(text: &str, value: &Spanned<DeValue<'_>>) -> bool {
    text[value.span()].starts_with('{')
}

fn to_value(value: &Spanned<DeValue<'_>>) -> toml::Value {
    match value.get_ref() {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        // A number too large for i64 stays text; the reader then names it as not a number.
        DeValue::Integer(number) => i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .map_or_else(|_| toml::Value::String(number.as_str().into()), toml::Value::Integer),
        DeValue::Float(number) => {
            toml::Value::Float(number.as_str().replace('_', "").parse().unwrap_or(f64::NAN))
        }
        DeValue::Boolean(truth) => toml::Value::Boolean(*truth),
        DeValue::Datetime(datetime) => toml::Value::Datetime(*datetime),
        DeValue::Array(items) => toml::Value::Array(items.iter().map(to_value).collect()),
        DeValue::Table(table) => toml::Value::Table(
            table.iter().map(|(key, value)| (key.get_ref().to_string(), to_value(value))).collect(),
        ),
    }
}

fn line_of(text: &str, position: usize) -> usize {
    text.as_bytes()[..position.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}
