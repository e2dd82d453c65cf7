//! Whatever a file says, loading it answers: with a topology or with what is wrong, never with a panic.
//!
//! Files of the corpus (`src/streams/file/corpus`, the shipped topologies, the examples) are changed at
//! random: bytes gone, lines moved, texts exchanged, pieces of other files put in. What comes out is loaded, or read as a test file.
//! `SLUICE_FILE_CASES` sets how many (default 1500), `SLUICE_SEED` where to begin, `SLUICE_FUZZ_SECONDS` for how long instead.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sluice::streams::{
    file::{Processors, Row, load},
    internals::parse_tests,
    processor::{Processor, ProcessorContext, processor_supplier},
    record::Record,
};

/// Pieces that mean something to one of the readers on the way.
const PIECES: &[&str] = &[
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "\\",
    "\\u00",
    "[",
    "]",
    "[[",
    "{",
    "}",
    "=",
    ",",
    ".",
    "\n",
    "\r\n",
    "\t",
    "#",
    "(",
    ")",
    "null",
    " and ",
    " or not ",
    " || ",
    "->>",
    "->",
    "-",
    "- -",
    "/ 0",
    "% 0",
    "9223372036854775808",
    "9223372036854775807",
    "-9223372036854775808",
    "1e999",
    "0x",
    "case ",
    " end",
    " when ",
    "filter (where ",
    "count(*)",
    "count(distinct ",
    "top(3, ",
    "top(0, x, y)",
    "é",
    "\u{0}",
    "\u{feff}",
    "🦀",
    "interval '1h'",
    "interval '-1d'",
    "1d",
    "\"0s\"",
    "\"106751991168d\"",
    "\"9999999999999999d\"",
    "from",
    "userId",
    "orders",
    "[table.x]\n",
    "window_start",
    "sum(",
    "cast(",
    " as ",
    " in (",
    " between ",
    " like ",
    "uuid5(",
    "json_object(",
    "date_trunc('day', ",
    "state_version = -1\n",
    "state_version = 9223372036854775807\n",
    "hopping = [\"1d\", \"1ms\"]",
    "sliding = \"5m\"",
    "session = \"30m\"",
    "zone = \"Asia/Seoul\"",
    "tumbling",
    "format = \"raw\"",
    "topic = \"a\"\n",
    "key = []\n",
    "on = []\n",
    "[global.x]\n",
    "[split.x]\n",
    "[join.x]\n",
    "rest = \"big\"\n",
    "?",
    "2026-13-45T99:99:99Z",
    "{ restart = true }",
    "{ advance = \"-1d 00:00:00\" }",
    "delete = true",
];

struct Nothing;

impl Processor<Vec<u8>, Row, Vec<u8>, Row> for Nothing {
    fn process(
        &mut self,
        _: &ProcessorContext<'_, Vec<u8>, Row>,
        _: Record<Vec<u8>, Row>,
    ) -> sluice::streams::error::Result<()> {
        Ok(())
    }
}

/// Numbers from a seed.
struct Roll(u64);

impl Roll {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides.max(1)
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    fn piece(&mut self) -> &'static str {
        PIECES[self.below(PIECES.len())]
    }

    /// A place between two characters.
    fn place(&mut self, text: &str) -> usize {
        let mut at = self.below(text.len() + 1);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

fn corpus() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> = ["src/streams/file/corpus", "topologies", "topologies/examples"]
        .into_iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(files.len() > 20, "the corpus is gone: {files:?}");
    files.into_iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// A file of the corpus with a few changes.
fn mangled(corpus: &[String], roll: &mut Roll) -> String {
    let mut text = roll.of(corpus).clone();
    for _ in 0..=roll.below(4) {
        let at = roll.place(&text);
        match roll.below(6) {
            0 => text.insert_str(at, roll.piece()),
            1 => {
                let mut end = (at + 1 + roll.below(12)).min(text.len());
                while !text.is_char_boundary(end) {
                    end += 1;
                }
                text.replace_range(at..end, roll.piece());
            }
            2 => {
                let mut lines: Vec<&str> = text.lines().collect();
                if !lines.is_empty() {
                    let (from, to) = (roll.below(lines.len()), roll.below(lines.len()));
                    let line = lines.remove(from);
                    lines.insert(to.min(lines.len()), line);
                }
                text = lines.join("\n");
            }
            3 => {
                let quoted: Vec<&str> = text.split('"').collect();
                let (from, to) = (roll.below(quoted.len()), roll.below(quoted.len()));
                let mut swapped = quoted.clone();
                swapped[to] = quoted[from];
                text = swapped.join("\"");
            }
            4 => {
                let lines: Vec<&str> = text.lines().collect();
                let keep = roll.below(lines.len() + 1);
                text = lines
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| *at != keep)
                    .map(|(_, line)| *line)
                    .collect::<Vec<_>>()
                    .join("\n");
            }
            _ => {
                let other = roll.of(corpus);
                let from = roll.place(other);
                let length = roll.below(400);
                let piece: String = other[from..].chars().take(length).collect();
                text.insert_str(at, &piece);
            }
        }
    }
    text
}

#[test]
fn whatever_the_file_says_loading_answers() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = number("SLUICE_SEED").unwrap_or(1);
    let until = number("SLUICE_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let cases = if until.is_some() { u64::MAX } else { number("SLUICE_FILE_CASES").unwrap_or(1_500) };
    let corpus = corpus();
    let mut processors = Processors::default();
    processors.register("known", processor_supplier(|| Nothing));
    let (mut seed, mut loaded) = (first, 0_u64);
    while seed - first < cases && until.is_none_or(|until| Instant::now() < until) {
        let text = mangled(&corpus, &mut Roll(seed));
        let answer = catch_unwind(AssertUnwindSafe(|| {
            // One of the two it is not; both have to say so.
            let refused = load("shop.toml", &text, &processors).err().map(|error| error.to_string());
            let _ = parse_tests("shop.test.toml", &text).map_err(|error| error.to_string());
            refused
        }));
        match answer {
            Ok(None) => loaded += 1,
            Ok(Some(message)) => {
                assert!(!message.is_empty(), "refused without a word, SLUICE_SEED={seed}\n{text}");
            }
            Err(_) => panic!("the loader panicked, SLUICE_SEED={seed}\n{text}"),
        }
        seed += 1;
    }
    let tried = seed - first;
    println!("{tried} files, {loaded} of them valid");
    assert!(
        loaded > 0 && loaded < tried,
        "{loaded} of {tried} loaded: the changes mean too little or too much"
    );
}
