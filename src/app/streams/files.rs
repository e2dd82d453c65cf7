//! From `streams.topologies` and command lines to loaded files: what is shipped in the binary, what is on disk.
//!
//! What must always hold: the mistakes of all files are reported together, before anything starts.

use std::path::Path;

use crate::{
    cli::Failure,
    streams::file::{LoadedFile, Processors, load},
};

/// In front of the name of a shipped topology.
pub const BUILTIN_PREFIX: &str = "builtin:";

/// Name, text, and the tests beside it.
struct Builtin {
    name: &'static str,
    text: &'static str,
    tests: &'static str,
}

/// The shipped topologies, so that the binary runs from any directory.
const BUILTINS: [Builtin; 2] = [
    Builtin {
        name: "coupon-statistics",
        text: include_str!("../../../topologies/coupon-statistics.toml"),
        tests: include_str!("../../../topologies/coupon-statistics.test.toml"),
    },
    Builtin {
        name: "coupon-notification",
        text: include_str!("../../../topologies/coupon-notification.toml"),
        tests: include_str!("../../../topologies/coupon-notification.test.toml"),
    },
];

/// A topology file's text and what messages call it.
#[derive(Clone, Debug)]
pub struct Source {
    /// For messages.
    pub name: String,
    /// The TOML.
    pub text: String,
}

/// Reads a topology: `builtin:NAME` or a path.
pub fn read(name: &str) -> Result<Source, Failure> {
    if let Some(builtin) = name.strip_prefix(BUILTIN_PREFIX) {
        return Ok(Source { name: name.into(), text: find_builtin(builtin)?.text.into() });
    }
    read_file(Path::new(name))
}

/// Reads the tests beside a topology: `x.test.toml` beside `x.toml`.
pub fn read_tests(name: &str) -> Result<Source, Failure> {
    if let Some(builtin) = name.strip_prefix(BUILTIN_PREFIX) {
        return Ok(Source { name: format!("{name}.test"), text: find_builtin(builtin)?.tests.into() });
    }
    let path = Path::new(name);
    read_file(&path.with_extension("test.toml"))
}

fn find_builtin(name: &str) -> Result<&'static Builtin, Failure> {
    BUILTINS.iter().find(|builtin| builtin.name == name).ok_or_else(|| {
        let names = BUILTINS.map(|builtin| builtin.name);
        let advice = match crate::config::nearest(name, names) {
            Some(meant) => format!("did you mean {BUILTIN_PREFIX}{meant}?"),
            None => format!("there are: {}", names.join(", ")),
        };
        Failure::Usage(format!("there is no topology {BUILTIN_PREFIX}{name}; {advice}"))
    })
}

fn read_file(path: &Path) -> Result<Source, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Source { name: path.display().to_string(), text }),
        Err(error) => {
            Err(Failure::Usage(format!("the topology file {} cannot be read: {error}", path.display())))
        }
    }
}

/// Processors that files may use.
pub fn processors() -> Processors {
    Processors::default()
}

/// Loads one text.
pub fn load_text(name: &str, text: &str) -> Result<LoadedFile, String> {
    load(name, text, &processors()).map_err(|error| error.to_string())
}

/// Loads sources; the failure lists the mistakes of all of them.
pub fn load_all(sources: &[Source]) -> Result<Vec<LoadedFile>, Failure> {
    let processors = processors();
    let mut loaded: Vec<LoadedFile> = Vec::new();
    let mut mistakes: Vec<String> = Vec::new();
    for source in sources {
        match load(&source.name, &source.text, &processors) {
            Ok(file) => {
                let app = &file.topology.application_id;
                if loaded.iter().any(|other| other.topology.application_id == *app) {
                    mistakes.push(format!(
                        "{}: app = \"{app}\" is another file's application id too; they would share offsets and state",
                        source.name
                    ));
                }
                loaded.push(file);
            }
            Err(error) => mistakes.push(error.to_string()),
        }
    }
    if mistakes.is_empty() { Ok(loaded) } else { Err(Failure::Usage(mistakes.join("\n"))) }
}

/// Reads and loads by name.
pub fn load_named(names: &[String]) -> Result<Vec<LoadedFile>, Failure> {
    let mut sources = Vec::new();
    let mut mistakes = Vec::new();
    for name in names {
        match read(name) {
            Ok(source) => sources.push(source),
            Err(failure) => mistakes.push(failure.to_string()),
        }
    }
    match (load_all(&sources), mistakes.is_empty()) {
        (Ok(files), true) => Ok(files),
        (Ok(_), false) => Err(Failure::Usage(mistakes.join("\n"))),
        (Err(failure), _) => {
            mistakes.push(failure.to_string());
            Err(Failure::Usage(mistakes.join("\n")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::test_utils::run_test_file;

    #[test]
    fn shipped_topologies_load_and_pass_the_tests_beside_them() {
        for builtin in &BUILTINS {
            let name = format!("{BUILTIN_PREFIX}{}", builtin.name);
            load_named(std::slice::from_ref(&name)).unwrap_or_else(|failure| panic!("{failure}"));
            let tests = read_tests(&name).unwrap();
            let outcomes = run_test_file(
                (builtin.name, builtin.text),
                (&tests.name, &tests.text),
                &Processors::default(),
            )
            .unwrap_or_else(|error| panic!("{error}"));
            assert!(!outcomes.is_empty());
            for outcome in outcomes {
                assert_eq!(outcome.failures, Vec::<String>::new(), "{}: {}", builtin.name, outcome.name);
            }
        }
    }

    #[test]
    fn mistakes_of_all_files_are_reported_together() {
        let broken = |name: &str| Source { name: name.into(), text: "version = 2\napp = 3\n".into() };
        let text = load_all(&[broken("a.toml"), broken("b.toml")]).err().unwrap().to_string();
        assert!(text.contains("a.toml:") && text.contains("b.toml:"), "{text}");
        let text = load_named(&["builtin:coupon-statistic".into(), "nowhere.toml".into()])
            .err()
            .unwrap()
            .to_string();
        assert!(text.contains("did you mean builtin:coupon-statistics?"), "{text}");
        assert!(text.contains("nowhere.toml cannot be read"), "{text}");
    }
}
