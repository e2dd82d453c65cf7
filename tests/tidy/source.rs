//! The repository as the rules see it: text files with their paths, and what a broken rule looks like.

use std::{fmt, fs, path::Path};

/// One text file.
pub struct SourceFile {
    /// Path from the root of the repository, with forward slashes.
    pub path: String,
    /// The text as it stands.
    pub text: String,
}

/// All files that rules look at.
pub struct Repository {
    files: Vec<SourceFile>,
}

/// One broken rule.
pub struct Violation {
    pub path: String,
    pub line: usize,
    /// What is wrong and what to do instead.
    pub rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.rule)
    }
}

/// Endings of the files that are read; everything else is data.
const TEXT: [&str; 12] =
    ["rs", "toml", "md", "sql", "lua", "sh", "yml", "yaml", "xml", "properties", "json", "html"];
/// Names without such an ending.
const NAMES: [&str; 3] = ["dev", "run", "Dockerfile"];
/// Folders that hold nothing written by hand.
const SKIPPED: [&str; 4] = ["target", ".git", ".services", "data"];

impl Repository {
    /// Reads the checkout that this test was compiled from.
    pub fn read() -> Self {
        let mut files = Vec::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        read_folder(root, root, &mut files);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        assert!(files.iter().any(|file| file.path == "src/lib.rs"), "no src/lib.rs under {}", root.display());
        Self { files }
    }

    /// A repository made of samples.
    pub fn of(files: &[(&str, &str)]) -> Self {
        let file = |&(path, text): &(&str, &str)| SourceFile { path: path.into(), text: text.into() };
        Self { files: files.iter().map(file).collect() }
    }

    /// Every file.
    pub fn all(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.iter()
    }

    /// Files whose path starts and ends like this.
    pub fn like<'a>(&'a self, start: &'a str, end: &'a str) -> impl Iterator<Item = &'a SourceFile> {
        self.files.iter().filter(move |file| file.path.starts_with(start) && file.path.ends_with(end))
    }

    /// The file at exactly this path.
    pub fn file(&self, path: &str) -> Option<&SourceFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

impl SourceFile {
    /// A violation in this file.
    pub fn violation(&self, line: usize, rule: impl Into<String>) -> Violation {
        Violation { path: self.path.clone(), line, rule: rule.into() }
    }

    /// Lines with their numbers, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

fn read_folder(root: &Path, folder: &Path, files: &mut Vec<SourceFile>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let entry = entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let kind = entry.file_type().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if kind.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                read_folder(root, &path, files);
            }
        } else if NAMES.contains(&name.as_str())
            || name.rsplit_once('.').is_some_and(|(_, end)| TEXT.contains(&end))
        {
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let path = path.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
            files.push(SourceFile { path, text });
        }
    }
}
