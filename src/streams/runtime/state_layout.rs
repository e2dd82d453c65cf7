//! Which task's file holds which stores, remembered from one start to the next.
//!
//! Tasks are numbered by sub-topology, and a node added to or taken from a topology may change the numbers of all that follow. The
//! stores are then found under the file of another task: before anything starts, files are renamed to where most of their stores now
//! belong. It only saves time: a store whose file is not found is restored from its changelog.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::streams::{
    error::{Result, StreamsError},
    state::Backend,
    topology::Topology,
};

/// The file's name, beside the state files.
const LAYOUT_FILE: &str = "layout.json";
/// Endings of the files of one task.
const PARTS: [&str; 3] = [".sqlite", ".sqlite-wal", ".sqlite-shm"];

/// Stores kept in files, by sub-topology.
type Layout = BTreeMap<usize, Vec<String>>;

/// Brings the files of a folder where this topology looks for them.
pub(super) fn adopt(folder: &Path, topology: &Topology) -> Result<()> {
    let wanted = layout(topology);
    let path = folder.join(LAYOUT_FILE);
    // Unreadable or absent is the same: nothing is known of what lies there.
    let known: Option<Layout> = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if known.as_ref() == Some(&wanted) || (known.is_none() && wanted.values().all(Vec::is_empty)) {
        return Ok(());
    }
    let failed = |error: io::Error| {
        StreamsError::fatal(format!(
            "cannot arrange the state files in {}: {error}; is streams.state_dir a folder that can be written?",
            folder.display()
        ))
    };
    fs::create_dir_all(folder).map_err(failed)?;
    if let Some(known) = known
        && let Some(_locks) = Locks::take(folder).map_err(failed)?
    {
        rename(folder, &moves(&known, &wanted)).map_err(failed)?;
    }
    let text = serde_json::to_vec(&wanted).unwrap_or_default();
    fs::write(&path, text).map_err(failed)
}

fn layout(topology: &Topology) -> Layout {
    let stores = |subtopology: &crate::streams::topology::Subtopology| {
        let builders = subtopology.stores.iter().map(|id| &topology.stores[id.0].builder);
        let mut names: Vec<String> =
            builders.filter(|b| b.backend == Backend::Persistent).map(|b| b.name.clone()).collect();
        names.sort();
        names
    };
    topology.subtopologies.iter().map(|subtopology| (subtopology.id, stores(subtopology))).collect()
}

/// From old numbers to new ones: each goes where most of its stores are, and no two to one place.
fn moves(known: &Layout, wanted: &Layout) -> BTreeMap<usize, usize> {
    let mut pairs: Vec<(usize, usize, usize)> = Vec::new();
    for (old, have) in known {
        for (new, want) in wanted {
            let shared = have.iter().filter(|name| want.contains(name)).count();
            if shared > 0 {
                pairs.push((shared, *old, *new));
            }
        }
    }
    pairs.sort_by_key(|(shared, old, new)| (std::cmp::Reverse(*shared), *old, *new));
    let mut moves = BTreeMap::new();
    for (_, old, new) in pairs {
        if !moves.contains_key(&old) && !moves.values().any(|taken| *taken == new) {
            moves.insert(old, new);
        }
    }
    moves
}

/// Renames in two steps, so that files may change places. What is interrupted in between is restored from changelogs.
fn rename(folder: &Path, moves: &BTreeMap<usize, usize>) -> io::Result<()> {
    if moves.iter().all(|(old, new)| old == new) {
        return Ok(());
    }
    let mut arriving: Vec<(PathBuf, PathBuf)> = Vec::new();
    for (task, partition, part) in task_files(folder)? {
        let from = folder.join(format!("{task}_{partition}{part}"));
        match moves.get(&task) {
            Some(new) if *new == task => {}
            Some(new) => {
                let to = format!("{new}_{partition}{part}");
                let between = folder.join(format!("moving-{to}"));
                fs::rename(&from, &between)?;
                arriving.push((between, folder.join(to)));
            }
            // Its stores are gone, and another task may come to have its number.
            None => fs::remove_file(&from)?,
        }
    }
    arriving.into_iter().try_for_each(|(between, to)| fs::rename(between, to))
}

/// Task, partition and ending of each file.
fn task_files(folder: &Path) -> io::Result<Vec<(usize, i32, &'static str)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let parsed = PARTS.iter().find_map(|part| {
            let (task, partition) = name.strip_suffix(part)?.split_once('_')?;
            Some((task.parse().ok()?, partition.parse().ok()?, *part))
        });
        found.extend(parsed);
    }
    Ok(found)
}

/// The locks of all state files, held while they are moved.
struct Locks(#[allow(dead_code, reason = "held, never read")] Vec<fs::File>);

impl Locks {
    /// `None` when another process works with one of the files.
    fn take(folder: &Path) -> io::Result<Option<Self>> {
        let mut held = Vec::new();
        for (task, partition, part) in task_files(folder)? {
            if part != PARTS[0] {
                continue;
            }
            let lock = fs::File::create(folder.join(format!("{task}_{partition}.sqlite.lock")))?;
            match lock.try_lock() {
                Ok(()) => held.push(lock),
                Err(fs::TryLockError::WouldBlock) => return Ok(None),
                Err(fs::TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(Some(Self(held)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout_of(stores: &[&[&str]]) -> Layout {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        stores.iter().map(|names| owned(names)).enumerate().collect()
    }

    #[test]
    fn files_follow_most_of_their_stores() {
        for (known, wanted, expected) in [
            (&[&["a"][..], &["b"]][..], &[&["a"][..], &["b"]][..], &[(0, 0), (1, 1)][..]),
            (&[&["a"], &["b"]], &[&["new"], &["a"], &["b"]], &[(0, 1), (1, 2)]),
            (&[&["a"], &["b"]], &[&["b"], &["a"]], &[(0, 1), (1, 0)]),
            (&[&["a"], &["b"]], &[&["b"]], &[(1, 0)]),
            (&[&["a"], &["b", "c"]], &[&["a", "b", "c"]], &[(1, 0)]),
            (&[&[], &["a"]], &[&[], &[]], &[]),
        ] {
            let found = moves(&layout_of(known), &layout_of(wanted));
            assert_eq!(found, expected.iter().copied().collect(), "{known:?} to {wanted:?}");
        }
    }

    #[test]
    fn files_change_places_and_those_without_a_place_go() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| fs::write(folder.path().join(name), name).unwrap();
        for name in ["0_0.sqlite", "0_1.sqlite", "0_0.sqlite-wal", "1_0.sqlite", "2_0.sqlite", "instance-id"]
        {
            write(name);
        }
        rename(folder.path(), &BTreeMap::from([(0, 1), (1, 0)])).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!(read("1_0.sqlite").as_deref(), Some("0_0.sqlite"));
        assert_eq!(read("1_0.sqlite-wal").as_deref(), Some("0_0.sqlite-wal"));
        assert_eq!(read("1_1.sqlite").as_deref(), Some("0_1.sqlite"));
        assert_eq!(read("0_0.sqlite").as_deref(), Some("1_0.sqlite"));
        assert_eq!((read("0_0.sqlite-wal"), read("2_0.sqlite")), (None, None));
        assert!(read("instance-id").is_some());
    }
}
