//! The listings of `docs/topologies.md`, executed as a reader would: files are written, commands are run, their output is compared.
//!
//! | a fence that begins | is |
//! |---|---|
//! | `toml NAME` | a file of that name, written |
//! | `toml NAME +` | appended to it |
//! | `toml in NAME` | a block that is valid where the file ends; it is not kept |
//! | `sh` | commands `sluice …`, run where the files are; one that ends in `   # fails` must fail |
//! | `text` | what the commands before it say, exactly |
//!
//! Any other fence fails the test: no listing of the guide is only read.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

#[test]
fn every_listing_of_the_guide_runs() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/topologies.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut listings = Reader { folder: folder.path(), said: String::new(), count: 0 };
    for (line, info, body) in fences(&page) {
        listings.run(line, info, body);
    }
    assert!(listings.count >= 20, "only {} listings were found", listings.count);
}

struct Reader<'a> {
    folder: &'a Path,
    /// What the last commands said.
    said: String,
    count: usize,
}

impl Reader<'_> {
    fn run(&mut self, line: usize, info: &str, body: &str) {
        self.count += 1;
        match info.split_whitespace().collect::<Vec<_>>()[..] {
            ["toml", "in", name] => {
                let whole = fs::read_to_string(self.folder.join(name)).unwrap_or_default();
                fs::write(self.folder.join("block.toml"), format!("{whole}\n{body}")).unwrap();
                let output = sluice(self.folder, "topology check block.toml");
                assert!(output.status.success(), "line {line}: the block is refused:\n{}", text(&output));
            }
            ["toml", name] => fs::write(self.folder.join(name), body).unwrap(),
            ["toml", name, "+"] => {
                let whole = fs::read_to_string(self.folder.join(name)).unwrap();
                fs::write(self.folder.join(name), format!("{whole}\n{body}")).unwrap();
            }
            ["sh"] => {
                self.said.clear();
                for command in body.lines().filter(|line| !line.trim().is_empty()) {
                    let (command, fails) = match command.strip_suffix("   # fails") {
                        Some(command) => (command, true),
                        None => (command, false),
                    };
                    let args = command.strip_prefix("sluice ").unwrap_or_else(|| {
                        panic!("line {line}: only `sluice …` can be run here, not {command}")
                    });
                    let output = sluice(self.folder, args);
                    assert_eq!(output.status.success(), !fails, "line {line}: {command}\n{}", text(&output));
                    self.said.push_str(&text(&output));
                }
            }
            ["text"] => {
                assert_eq!(
                    self.said.trim_end(),
                    body.trim_end(),
                    "line {line}: the commands before say else"
                );
            }
            _ => panic!("line {line}: a listing of `{info}` is not run; see the kinds in this test"),
        }
    }
}

fn sluice(folder: &Path, args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(args.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    out + &String::from_utf8_lossy(&output.stderr)
}

/// Line, info string and body of each fence.
fn fences(page: &str) -> Vec<(usize, &str, &str)> {
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    let mut open: Option<(usize, &str, usize)> = None;
    for text in page.split_inclusive('\n') {
        let end = at + text.len();
        if let Some(info) = text.trim_end().strip_prefix("```") {
            match open.take() {
                Some((line, info, start)) => found.push((line, info, &page[start..at])),
                None => open = Some((line, info, end)),
            }
        }
        (at, line) = (end, line + 1);
    }
    assert!(open.is_none(), "the last listing has no end");
    found
}
