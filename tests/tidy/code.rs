//! Just enough reading of Rust for the rules: code without comments and strings, and the paths that it names.
//!
//! Always true: blanked text keeps its length and its line breaks, so offsets and line numbers stay those of the file.

/// The text with comments, strings and characters blanked out.
pub fn blank_comments_and_strings(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => find(bytes, at, b"\n"),
            b'/' if bytes[at..].starts_with(b"/*") => end_of_block_comment(bytes, at),
            b'r' | b'b' if !is_word(bytes, at.wrapping_sub(1)) => end_of_raw_string(bytes, at).unwrap_or(at),
            b'"' => end_of_string(bytes, at),
            b'\'' => end_of_character(bytes, at).unwrap_or(at),
            _ => at,
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(out).expect("only whole tokens were blanked")
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    bytes[from..].windows(what.len()).position(|window| window == what).map_or(bytes.len(), |at| from + at)
}

fn is_word(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

fn end_of_block_comment(bytes: &[u8], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (at, depth) = (at + 2, depth + 1);
        } else if bytes[at..].starts_with(b"*/") {
            (at, depth) = (at + 2, depth - 1);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn end_of_raw_string(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    if bytes[at] == b'b' {
        at += 1;
    }
    if bytes.get(at) != Some(&b'r') {
        return None;
    }
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    at += 1 + hashes;
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    Some((find(bytes, at + 1, &close) + close.len()).min(bytes.len()))
}

fn end_of_string(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// A character has its closing quote at once or after a backslash; a lifetime has none.
fn end_of_character(bytes: &[u8], from: usize) -> Option<usize> {
    match bytes.get(from + 1)? {
        b'\\' => Some((find(bytes, from + 3, b"'") + 1).min(bytes.len())),
        byte => {
            let width = match byte {
                0xF0.. => 4,
                0xE0.. => 3,
                0xC0.. => 2,
                _ => 1,
            };
            (bytes.get(from + 1 + width) == Some(&b'\'')).then_some(from + width + 2)
        }
    }
}

/// A path that code names, from the crate's root: `["streams", "client", "Consumer"]`.
#[derive(Debug, PartialEq)]
pub struct Reference {
    pub path: Vec<String>,
    pub line: usize,
    /// Inside `mod tests` or another module under `#[cfg(test)]`.
    pub in_tests: bool,
}

/// Every `crate::…` and `super::…` of a file, braces of a `use` spread out. `module` is the file's own path.
pub fn references(text: &str, module: &[String]) -> Vec<Reference> {
    let code = blank_comments_and_strings(text);
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    // The inline modules that enclose this place: name, brace depth, under cfg(test).
    let mut inline: Vec<(String, usize, bool)> = Vec::new();
    let (mut at, mut depth, mut line) = (0, 0, 1);
    while at < bytes.len() {
        match bytes[at] {
            b'\n' => line += 1,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                inline.retain(|(_, opened, _)| *opened <= depth);
            }
            _ if is_word(bytes, at.wrapping_sub(1)) => {}
            _ => {
                let word = word_at(&code, at);
                if word == "mod"
                    && let Some(name) = inline_module(&code, at + 3)
                {
                    let tested = code[..at].trim_end().ends_with("#[cfg(test)]");
                    inline.push((name, depth + 1, tested));
                } else if matches!(word, "crate" | "super") && code[at + word.len()..].starts_with("::") {
                    let mut here = module.to_vec();
                    here.extend(inline.iter().map(|(name, ..)| name.clone()));
                    let in_tests = inline.iter().any(|(.., tested)| *tested);
                    for path in spread(&code[at..], &here) {
                        found.push(Reference { path, line, in_tests });
                    }
                    // The rest of this path is read; `super::super` must not be read as two.
                    let rest = code[at..].find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
                    at += rest.unwrap_or(word.len()).max(1);
                    continue;
                }
            }
        }
        at += 1;
    }
    found
}

fn word_at(code: &str, at: usize) -> &str {
    let end = code.as_bytes()[at..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
    &code[at..at + end]
}

/// The name in ` name {`: a module with its text here, not in a file.
fn inline_module(code: &str, at: usize) -> Option<String> {
    let rest = code[at..].strip_prefix(' ')?;
    let name = word_at(rest, 0);
    rest[name.len()..].trim_start().starts_with('{').then(|| name.to_owned())
}

/// Reads one path or use tree at the start of `code` and resolves `crate` and `super` against the module `here`.
fn spread(code: &str, here: &[String]) -> Vec<Vec<String>> {
    let mut flat = Vec::new();
    read_tree(code, Vec::new(), &mut flat);
    flat.into_iter()
        .map(|segments| {
            let mut path: Vec<String> = if segments[0] == "crate" { Vec::new() } else { here.to_vec() };
            for segment in segments {
                match segment.as_str() {
                    "crate" | "self" => {}
                    "super" => {
                        path.pop();
                    }
                    _ => path.push(segment),
                }
            }
            path
        })
        .collect()
}

/// Returns what follows the tree.
fn read_tree<'a>(code: &'a str, mut prefix: Vec<String>, flat: &mut Vec<Vec<String>>) -> &'a str {
    let mut rest = code.trim_start();
    loop {
        if let Some(inside) = rest.strip_prefix('{') {
            let mut inside = inside.trim_start();
            while !inside.is_empty() && !inside.starts_with('}') {
                let after = read_tree(inside, prefix.clone(), flat);
                // `x as y` and whatever else stands before the comma is of no interest.
                let next = after.find([',', '}']).unwrap_or(after.len());
                inside = after[next..].trim_start_matches(',').trim_start();
            }
            return inside.strip_prefix('}').unwrap_or(inside);
        }
        let word = word_at(rest, 0);
        if !word.is_empty() {
            prefix.push(word.to_owned());
        }
        rest = &rest[word.len()..];
        match rest.strip_prefix("::") {
            Some(next) if !word.is_empty() && !next.starts_with('<') => rest = next,
            _ => break,
        }
    }
    if !prefix.is_empty() {
        flat.push(prefix);
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_are_blank() {
        let check =
            |text: &str, expected: &str| assert_eq!(blank_comments_and_strings(text), expected, "{text}");
        check("a // b\nc", "a     \nc");
        check("a /* b /* c */ d */ e", "a                   e");
        check(r#"f("x \" // y") + 1"#, "f(           ) + 1");
        check("r#\"a \" b\"# c", "           c");
        check("'a' 'é' '\\'' <'a>", "              <'a>");
        check("br\"x\" bar\"y\"", "      bar   ");
    }

    #[test]
    fn paths_are_resolved_from_the_root() {
        let module: Vec<String> = ["streams", "client"].map(String::from).to_vec();
        let check = |text: &str, expected: &[&str]| {
            let found: Vec<String> =
                references(text, &module).into_iter().map(|r| r.path.join("::")).collect();
            assert_eq!(found, expected, "{text}");
        };
        check("use crate::coupon::ids;", &["coupon::ids"]);
        check(
            "use super::{error::Result, record::{A, B as C}};",
            &["streams::error::Result", "streams::record::A", "streams::record::B"],
        );
        check("fn f(x: crate::http::X) -> super::super::Y {}", &["http::X", "Y"]);
        check(
            "mod tests { use super::*; use super::super::file::X; }",
            &["streams::client", "streams::file::X"],
        );
        check("mod a { mod b {} } use super::X;", &["streams::X"]);
        check("// use crate::http;\nlet x = \"crate::http\"; $crate::y", &["y"]);
        check("use crate::{\n    a::{self, b},\n    c::*,\n};\nuse std::x;", &["a", "a::b", "c"]);
    }

    #[test]
    fn test_modules_are_told_apart() {
        let found = references(
            "use super::A;\n#[cfg(test)]\nmod tests {\n use super::super::B;\n}\nuse super::C;",
            &["x".into()],
        );
        let seen: Vec<(usize, bool)> = found.iter().map(|r| (r.line, r.in_tests)).collect();
        assert_eq!(seen, [(1, false), (4, true), (6, false)]);
    }
}
