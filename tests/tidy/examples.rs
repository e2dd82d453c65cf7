//! Every operator of the DSL has an example that runs, with an assertion on what comes out.
//!
//! Operators are the public methods of the types in [`TYPES`]. Forms that differ from another one only in that a function may fail
//! (`try_…`) or that a name is given (`…_named`) say so in a link to it, which stands for an example of their own.

use crate::source::{Repository, SourceFile, Violation};

/// The types a topology is written with, by the file name's folder.
const FOLDER: &str = "src/streams/kstream/";
const TYPES: [&str; 17] = [
    "BranchedKStream",
    "BufferConfig",
    "CogroupedKStream",
    "JoinWindows",
    "KGroupedStream",
    "KGroupedTable",
    "KStream",
    "KTable",
    "SessionWindowedCogroupedKStream",
    "SessionWindowedKStream",
    "SessionWindows",
    "SlidingWindows",
    "StreamsBuilder",
    "TimeWindowedCogroupedKStream",
    "TimeWindowedKStream",
    "TimeWindows",
    "UnlimitedWindows",
];
/// Methods that put nothing into a topology; the example of every operator builds one.
const NO_OPERATORS: [&str; 4] = ["build", "new", "queryable_store_name", "with_config"];

/// See the module's documentation.
pub fn check(repository: &Repository) -> Vec<Violation> {
    repository.like(FOLDER, ".rs").flat_map(check_file).collect()
}

fn check_file(file: &SourceFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut of_dsl = false;
    let mut doc = String::new();
    for (number, line) in file.lines() {
        if line.starts_with("impl") {
            of_dsl = TYPES.contains(&implemented(line));
        } else if line.starts_with('}') {
            of_dsl = false;
        }
        if let Some(text) = line.trim().strip_prefix("///") {
            doc.push_str(text.trim());
            doc.push('\n');
            continue;
        }
        if let Some(name) = line.strip_prefix("    pub fn ").filter(|_| of_dsl) {
            let name = name.split(['(', '<']).next().unwrap_or_default();
            if !NO_OPERATORS.contains(&name) && !is_shown(name, &doc) {
                violations.push(file.violation(
                    number,
                    format!("`{name}` has no example with an `assert`: show what comes out of it"),
                ));
            }
        }
        if !line.trim().starts_with("#[") {
            doc.clear();
        }
    }
    violations
}

fn is_shown(name: &str, doc: &str) -> bool {
    let code: String = doc.split("```").skip(1).step_by(2).collect();
    let runs = !["ignore", "no_run", "text"].iter().any(|word| doc.contains(&format!("```{word}")));
    let other_form = name.strip_prefix("try_").or(name.strip_suffix("_named"));
    let refers = other_form.is_some_and(|form| doc.contains(&format!("[`{form}`](Self::{form})")));
    refers || (runs && code.contains("assert"))
}

/// `KTable` in `impl<K: Data, V: Data> KTable<Windowed<K>, V> {`; nothing for the implementation of a trait.
fn implemented(line: &str) -> &str {
    let mut depth = 0;
    let rest = line.trim_start_matches("impl");
    let start = rest.char_indices().find(|(_, c)| {
        depth += i32::from(*c == '<') - i32::from(*c == '>');
        depth == 0 && *c == ' '
    });
    let name = start.map_or(rest, |(at, _)| &rest[at..]).trim();
    if name.contains(" for ") { "" } else { name.split(['<', ' ']).next().unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_found;

    #[test]
    fn an_operator_without_an_example_is_found() {
        let head = "//! x\nimpl<K: Data, V: Data> KStream<K, V> {\n";
        let with = |doc: &str, name: &str| format!("{head}{doc}    pub fn {name}(&self) {{}}\n}}\n");
        let example = "    /// Says.\n    ///\n    /// ```\n    /// assert_eq!(1, 1);\n    /// ```\n";
        let path = "src/streams/kstream/verb.rs";
        let found = |text: &str, expected: &[&str]| assert_found(check, &[(path, text)], expected);
        found(&with(example, "verb"), &[]);
        found(&with("    /// Says.\n", "verb"), &["src/streams/kstream/verb.rs:4"]);
        found(
            &with("    /// ```\n    /// let n = 1;\n    /// ```\n", "verb"),
            &["src/streams/kstream/verb.rs:6"],
        );
        found(
            &with("    /// ```no_run\n    /// assert!(true);\n    /// ```\n", "verb"),
            &["src/streams/kstream/verb.rs:6"],
        );
        found(&with("    /// As [`verb`](Self::verb), named.\n", "verb_named"), &[]);
        found(
            &with("    /// As [`verb`](Self::verb), stored.\n", "verb_with"),
            &["src/streams/kstream/verb.rs:4"],
        );
        found("//! x\nimpl Graph {\n    pub fn add(&self) {}\n}\n", &[]);
    }
}
