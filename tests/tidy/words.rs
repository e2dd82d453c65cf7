//! Rules about words: file headers, left-overs, sleeping tests, what the engine must never mention.

use crate::{
    code,
    source::{Repository, SourceFile, Violation},
};

pub fn check_module_headers(repository: &Repository) -> Vec<Violation> {
    let rust = ["src/", "tests/", "benches/", "build.rs"];
    rust.iter()
        .flat_map(|folder| repository.like(folder, ".rs"))
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| {
            file.violation(1, "a file opens with `//!`: what it is, where it stands, what must always hold")
        })
        .collect()
}

pub fn check_engine_vocabulary(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository.like("src/streams/", "") {
        for (number, line) in file.lines() {
            if line.to_lowercase().contains("coupon") {
                violations.push(
                    file.violation(number, "the engine knows no coupon: not in code, comments or tests"),
                );
            }
        }
    }
    violations
}

/// Words that must not be left behind, in pieces so that this file does not break its own rule.
const LEFT_OVERS: &[(&str, &str)] = &[
    (concat!("FIX", "ME"), "finish it, or say in plain words what is missing and why"),
    (concat!("XX", "X"), "finish it, or say in plain words what is missing and why"),
    (concat!("TO", "DO"), "finish it, or say in plain words what is missing and why"),
    (concat!("#[ign", "ore"), "a test that nobody runs holds nothing: make it run, or delete it"),
    (concat!("/wo", "rk/"), "a path of one machine: make it relative, or take it from the environment"),
    (concat!("../sha", "red"), "a path outside the repository: put what is needed into it"),
    (concat!("/ho", "me/"), "a path of one machine: make it relative, or take it from the environment"),
    (concat!("/Us", "ers/"), "a path of one machine: make it relative, or take it from the environment"),
];

pub fn check_left_overs(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository.all() {
        for (number, line) in file.lines() {
            for (word, remedy) in LEFT_OVERS {
                if contains_word(line, word) {
                    violations.push(file.violation(number, format!("{word}: {remedy}")));
                }
            }
        }
    }
    violations
}

/// Words in capitals count only as whole words (a key may contain such letters).
fn contains_word(line: &str, word: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    let whole = word.chars().all(letter);
    line.match_indices(word).any(|(at, _)| {
        !whole || !(line[..at].ends_with(letter) || line[at + word.len()..].starts_with(letter))
    })
}

/// A test may sleep only between two looks at a condition, in a function that gives up at a deadline.
pub fn check_sleeps(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository.like("tests/", ".rs").chain(repository.like("src/", ".rs")) {
        let code = code::blank_comments_and_strings(&file.text);
        let tests_from = if file.path.starts_with("tests/") { Some(0) } else { code.find("#[cfg(test)]") };
        let Some(tests_from) = tests_from else { continue };
        for (at, _) in code[tests_from..].match_indices("sleep(") {
            let at = tests_from + at;
            if code[..at].ends_with("fn ") || enclosing_function(&code, at).contains("deadline") {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            violations
                .push(file.violation(line, "a test does not sleep: poll a condition until a `deadline`"));
        }
    }
    violations
}

/// From the last `fn ` before the place to the brace that closes its body.
fn enclosing_function(code: &str, at: usize) -> &str {
    let start = code[..at].rfind("fn ").unwrap_or(0);
    let mut depth = 0;
    for (offset, character) in code[start..].char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 1 => return &code[start..start + offset],
            '}' => depth -= 1,
            _ => {}
        }
    }
    &code[start..]
}

/// A script says what it guarantees, what it is given and what it returns; its name says how many keys it takes.
pub fn check_lua_headers(repository: &Repository) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in repository.like("lua/", ".lua") {
        let header: String =
            file.text.lines().take_while(|line| line.starts_with("--")).collect::<Vec<_>>().join("\n");
        for part in ["Guarantee", "KEYS", "ARGV", "Returns"] {
            let needed = part != "ARGV" || file.text.contains("ARGV[");
            if needed && !header.to_lowercase().contains(&part.to_lowercase()) {
                violations.push(file.violation(1, format!("the header of a script states its {part}")));
            }
        }
        violations.extend(check_key_count(file));
    }
    violations
}

fn check_key_count(file: &SourceFile) -> Option<Violation> {
    let code: String = file.lines().map(|(_, line)| line.split("--").next().unwrap_or(line)).collect();
    let used = (1..=20).rev().find(|n| code.contains(&format!("KEYS[{n}]"))).unwrap_or(0);
    let name = file.path.trim_end_matches(".lua");
    let named = name.rsplit_once('-').and_then(|(_, count)| count.parse::<usize>().ok());
    (named != Some(used))
        .then(|| file.violation(1, format!("the script uses {used} keys: its name ends in -{used}.lua")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_found;

    #[test]
    fn a_file_without_a_header_is_found() {
        let files = [("src/a.rs", "use x;"), ("src/b.rs", "//! What it is."), ("tests/c/main.rs", "// no")];
        assert_found(check_module_headers, &files, &["src/a.rs:1", "tests/c/main.rs:1"]);
    }

    #[test]
    fn a_coupon_in_the_engine_is_found() {
        let files = [("src/streams/a.rs", "//! x\n// like a CouponIssued"), ("src/coupon/a.rs", "// coupon")];
        assert_found(check_engine_vocabulary, &files, &["src/streams/a.rs:2"]);
    }

    #[test]
    fn left_overs_are_found() {
        let broken = |line: &str| assert_found(check_left_overs, &[("a.md", line)], &["a.md:1"]);
        broken(concat!("// FIX", "ME later"));
        broken(concat!("#[ign", "ore = \"slow\"]"));
        broken(concat!("see /wo", "rk/notes"));
        assert_found(check_left_overs, &[("a.md", concat!("AXX", "XB work/x"))], &[]);
    }

    #[test]
    fn a_sleeping_test_is_found() {
        let sleeps = "fn t() {\n    thread::sleep(ms);\n}";
        let polls = "fn wait() {\n    while now() < deadline { sleep(ms) }\n}";
        assert_found(check_sleeps, &[("tests/fast/a.rs", sleeps)], &["tests/fast/a.rs:2"]);
        assert_found(check_sleeps, &[("tests/fast/a.rs", polls)], &[]);
        assert_found(check_sleeps, &[("src/a.rs", sleeps)], &[]);
        let in_source = format!("#[cfg(test)]\nmod tests {{\n{polls}\n{sleeps}\n}}");
        assert_found(check_sleeps, &[("src/a.rs", &in_source)], &["src/a.rs:7"]);
    }

    #[test]
    fn a_script_without_its_header_is_found() {
        let header = "-- Guarantee: one\n-- KEYS 1 a\n-- ARGV 1 b\n-- Returns c\n";
        let good = format!("{header}local a = KEYS[1]");
        assert_found(check_lua_headers, &[("lua/admit-1.lua", &good)], &[]);
        assert_found(check_lua_headers, &[("lua/admit-2.lua", &good)], &["lua/admit-2.lua:1"]);
        assert_found(check_lua_headers, &[("lua/admit.lua", &good)], &["lua/admit.lua:1"]);
        let bare = "-- Guarantee, KEYS, returns\nlocal a, b = KEYS[1], ARGV[1]";
        assert_found(check_lua_headers, &[("lua/a-1.lua", bare)], &["lua/a-1.lua:1"]);
    }
}
