//! The reference page of expressions, made from the tables that the checker uses.
//!
//! `docs/expressions.md` is this text; a test holds the two equal and evaluates every example. What must always hold: nothing is
//! documented that does not run, and nothing runs undocumented.

use std::fmt::Write;

use super::{
    aggregate,
    function::{FUNCTIONS, NON_DETERMINISTIC, SPECIAL_FORMS},
    rules::reference_signature,
};

const HEAD: &str = "\
# Expressions

Generated from the code. To change it, change the tables in `src/streams/file/expression/` and run
`SLUICE_BLESS=1 cargo test --lib reference`.

Expressions in topology files are SQL. They are checked when the file is loaded and give the same answer on every run.

## Types

| type | values |
|---|---|
| `text` | text; compared by bytes |
| `int` | 64-bit integer; a result beyond it goes on as a double, as in SQLite |
| `float` | double; what is no number is NULL |
| `bool` | `true`, `false` |
| `timestamp` | a moment, to the millisecond; JSON: RFC 3339 or milliseconds since 1970 in, RFC 3339 in UTC out |
| `duration` | milliseconds; written `interval '1h30m'` |
| `uuid` | UUID |
| `json` | a JSON document |

A type with `?` may be NULL. NULL spreads as in SQL: arithmetic, comparison and functions with a NULL give NULL, and a condition that is
NULL does not hold. A constant text beside a moment, a duration or a UUID is read as one.

## Operators, the tightest first

| operators | on | gives |
|---|---|---|
| `\\|\\|` | text, int, float, uuid, timestamp | text |
| `->`, `->>` | json and a member name, index or path | json, text |
| `*`, `/`, `%` | numbers; duration and int | whole numbers divide to a whole number; by zero is NULL |
| `+`, `-` | numbers; timestamp and duration; two timestamps | number, timestamp, duration |
| `<`, `<=`, `>`, `>=` | equal types, or two numbers | bool |
| `=`, `<>`, `is [not] null`, `is [not] true`, `is [not] distinct from`, `[not] in (…)`, `[not] like`, `[not] between` | | bool |
| `not`, then `and`, then `or` | bool | bool, of three values |

`like` matches `%` and `_`; ASCII letters match in either case; `escape` names a character after which they stand for themselves.

## Functions

";

/// The text of `docs/expressions.md`.
pub(crate) fn markdown() -> String {
    let mut out = HEAD.to_owned();
    // Writing to a string cannot fail.
    for (_, signature, doc, example) in SPECIAL_FORMS {
        let _ = writeln!(out, "* `{signature}` — {doc}\n  `{}` is `{}`.", example.0, example.1);
    }
    for function in FUNCTIONS {
        let signatures: Vec<String> = function
            .signatures
            .iter()
            .map(|s| format!("`{}`", reference_signature(function.name, s)))
            .collect();
        let _ = write!(out, "* {} — {}", signatures.join(", "), function.doc);
        if !function.aliases.is_empty() {
            let _ = write!(out, " Also `{}`.", function.aliases.join("`, `"));
        }
        let _ = writeln!(out, "\n  `{}` is `{}`.", function.example.0, function.example.1);
    }
    out.push_str("\n## Aggregates, in a table's `select`\n\nEach may be followed by `filter (where …)`.\n\n");
    for (signature, doc) in aggregate::REFERENCE {
        let _ = writeln!(out, "* `{signature}` — {doc}");
    }
    let _ = write!(
        out,
        "\n## Refused\n\nWhat gives another answer each time is refused when the file is loaded: `{}`. Use the record's own time, and `uuid5` \
         for ids.\n",
        NON_DETERMINISTIC.join("`, `")
    );
    out
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Expression, Scope, check},
        *,
    };

    #[test]
    fn the_page_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/expressions.md");
        if std::env::var_os("SLUICE_BLESS").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/docs")).unwrap();
            std::fs::write(path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert!(
            page == markdown(),
            "docs/expressions.md is old: run SLUICE_BLESS=1 cargo test --lib reference"
        );
    }

    #[test]
    fn every_example_gives_what_it_says() {
        let examples =
            FUNCTIONS.iter().map(|function| function.example).chain(SPECIAL_FORMS.iter().map(|form| form.3));
        for (text, expected) in examples {
            let value = |text: &str| {
                let typed = if text == "null" {
                    return super::super::super::value::Datum::Null;
                } else {
                    check(text, &Scope::default())
                };
                let typed = typed.unwrap_or_else(|error| panic!("{text}: {error}"));
                Expression::new(typed).evaluate(&[], &[]).unwrap()
            };
            assert_eq!(value(text), value(expected), "{text}");
        }
    }
}
