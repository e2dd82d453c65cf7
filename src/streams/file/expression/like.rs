//! `LIKE` as SQLite has it: `%` any text, `_` one character, letters of ASCII match in either case.
//!
//! A pattern is compiled once when it is a constant. What must always hold: the same answer as SQLite's matcher, in time that does
//! not explode with the number of `%`.

/// One step of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// This character, ASCII letters in either case (held in lower case).
    One(char),
    /// Any one character.
    Any,
    /// Any characters, also none.
    Rest,
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(crate) struct LikePattern {
    steps: Vec<Step>,
    /// The pattern ends in a lone escape character: it matches nothing.
    broken: bool,
}

impl LikePattern {
    /// Compiles a pattern; after `escape` a character stands for itself.
    pub(crate) fn new(pattern: &str, escape: Option<char>) -> Self {
        let mut steps = Vec::new();
        let mut chars = pattern.chars();
        let mut broken = false;
        while let Some(c) = chars.next() {
            // The escape character is looked for first, so it may even be `%` or `_`.
            if Some(c) == escape {
                match chars.next() {
                    Some(literal) => steps.push(Step::One(literal.to_ascii_lowercase())),
                    None => broken = true,
                }
            } else {
                match c {
                    '%' if steps.last() != Some(&Step::Rest) => steps.push(Step::Rest),
                    '%' => {}
                    '_' => steps.push(Step::Any),
                    c => steps.push(Step::One(c.to_ascii_lowercase())),
                }
            }
        }
        Self { steps, broken }
    }

    /// Whether the text matches.
    pub(crate) fn matches(&self, text: &str) -> bool {
        if self.broken {
            return false;
        }
        // Greedy with one point to fall back to: the last `%` seen is the only one that need ever be extended.
        let (mut step, mut rest) = (0, text.chars());
        let mut fallback: Option<(usize, std::str::Chars<'_>)> = None;
        loop {
            if self.steps.get(step) == Some(&Step::Rest) {
                step += 1;
                fallback = Some((step, rest.clone()));
                continue;
            }
            let mut ahead = rest.clone();
            match (self.steps.get(step), ahead.next()) {
                (None, None) => return true,
                (Some(Step::One(wanted)), Some(c)) if c.to_ascii_lowercase() == *wanted => {
                    step += 1;
                    rest = ahead;
                }
                (Some(Step::Any), Some(_)) => {
                    step += 1;
                    rest = ahead;
                }
                _ => {
                    let Some((after, mut from)) = fallback.take() else { return false };
                    if from.next().is_none() {
                        return false;
                    }
                    (step, rest) = (after, from.clone());
                    fallback = Some((after, from));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_sqlite_does() {
        let cases = [
            ("abc", "ABC", None, true),
            ("a%c", "abbbc", None, true),
            ("a%c", "abbb", None, false),
            ("%", "", None, true),
            ("_", "", None, false),
            ("_%_", "ab", None, true),
            ("%a%b%c", "xxaxbxbxcxc", None, true),
            ("é", "É", None, false),
            ("50!%", "50%", Some('!'), true),
            ("50!%", "500", Some('!'), false),
            ("a!", "a", Some('!'), false),
            ("%%%%%%%%%%%%%%%%%%%%b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", None, false),
        ];
        for (pattern, text, escape, expected) in cases {
            assert_eq!(LikePattern::new(pattern, escape).matches(text), expected, "{text} like {pattern}");
        }
    }
}
