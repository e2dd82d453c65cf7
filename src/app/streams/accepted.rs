//! What this process last ran, beside the state it belongs to: plan and text of each accepted file.
//!
//! A file is compared with it at the next start, as with what runs at a reload: a change that would make kept state mean something
//! else is refused before anything is touched. Absent with the state directory: then nothing is known and nothing is refused.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Its name in the application's state folder.
const FILE: &str = "accepted.json";

/// A file that ran.
#[derive(Debug, Deserialize)]
pub struct Accepted {
    /// The plan in canonical form.
    pub plan: Value,
    /// The file's text.
    pub text: String,
}

/// What an application last ran with this state, if that is known.
pub fn read(state_dir: &Path, application: &str) -> Option<Accepted> {
    let bytes = std::fs::read(path(state_dir, application)).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::warn!(application, %error, "what this application last ran cannot be read; nothing is compared");
            None
        }
    }
}

/// What runs now.
#[derive(Serialize)]
pub struct Noted<'a> {
    /// See [`Accepted`].
    pub plan: &'a Value,
    /// See [`Accepted`].
    pub text: &'a str,
}

/// Notes what runs from now on, whole or not at all.
pub fn write(state_dir: &Path, application: &str, noted: &Noted<'_>) -> io::Result<()> {
    let path = path(state_dir, application);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(noted)?)?;
    // A machine that stops must not leave the new name with nothing behind it: nothing would be compared then.
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn path(state_dir: &Path, application: &str) -> PathBuf {
    state_dir.join(application).join(FILE)
}
