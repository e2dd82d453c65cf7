//! Locks: the committed plans of topology files, `.plan/APP.json` beside them.
//!
//! A lock is the canonical plan as text, so that a review shows what a change of the file means. Written only when asked to.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{app::streams::files::BUILTIN_PREFIX, cli::Failure, streams::file::LoadedFile};

/// The folder of the locks, beside the files.
const FOLDER: &str = ".plan";
/// Where the shipped topologies lie in the repository.
const BUILTIN_FOLDER: &str = "topologies";

/// Where a file's lock is. That of a shipped topology is looked for in the repository.
pub fn path(file: &LoadedFile) -> PathBuf {
    let folder = match file.name.starts_with(BUILTIN_PREFIX) {
        true => Path::new(BUILTIN_FOLDER),
        false => Path::new(&file.name).parent().unwrap_or(Path::new("")),
    };
    folder.join(FOLDER).join(format!("{}.json", file.topology.application_id))
}

/// The text of a lock.
pub fn text(plan: &Value) -> String {
    format!("{plan:#}\n")
}

/// The plan in a lock; `None` when there is none.
pub fn read(path: &Path) -> Result<Option<Value>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::of(format!("the lock {}", path.display()), error)),
    };
    let plan = serde_json::from_str(&text);
    plan.map(Some).map_err(|error| {
        Failure::Usage(format!(
            "the lock {} is no plan: {error}; write it again with `sluice topology plan --write`",
            path.display()
        ))
    })
}

/// Writes a lock; whether its text changed.
pub fn write(path: &Path, plan: &Value) -> Result<bool, Failure> {
    let text = text(plan);
    if std::fs::read_to_string(path).is_ok_and(|known| known == text) {
        return Ok(false);
    }
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, text)
    };
    write().map_err(|error| Failure::of(format!("writing {}", path.display()), error))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::streams::files;

    /// Every topology file of the repository, tests beside them left out.
    fn topologies() -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies");
        let mut found = Vec::new();
        for folder in [root.clone(), root.join("examples")] {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            let names = entries.map(|entry| entry.unwrap().path().display().to_string());
            found.extend(names.filter(|name| name.ends_with(".toml") && !name.ends_with(".test.toml")));
        }
        assert!(found.len() >= 2, "{found:?}");
        found
    }

    #[test]
    fn every_shipped_plan_is_as_its_lock_says() {
        for name in topologies() {
            let file = files::load_named(&[name]).unwrap().remove(0);
            let path = path(&file);
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == text(&file.plan),
                "{}: the plan is not as {} says. `sluice topology diff` tells what that means for what runs; \
                 `sluice topology plan --write topologies/*.toml topologies/examples/*.toml` announces it",
                file.name,
                path.display()
            );
        }
    }

    #[test]
    fn a_lock_is_written_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FOLDER).join("app.json");
        assert_eq!(read(&path).unwrap(), None);
        let plan = serde_json::json!({ "app": "app", "nodes": [] });
        assert!(write(&path, &plan).unwrap());
        assert!(!write(&path, &plan).unwrap(), "nothing changed");
        assert_eq!(read(&path).unwrap(), Some(plan));
        std::fs::write(&path, "{").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("--write"));
    }
}
