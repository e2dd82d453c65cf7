//! Topologies as files: `topologies/*.toml` read, checked, planned and lowered onto the engine.
//!
//! | file | step |
//! |---|---|
//! | [`value`], [`time`], [`json`] | what moves: datums, rows, and records to rows and back |
//! | [`expression`] | SQL in the file's strings: parsed, typed, compiled |
//!
//! A record's way through a lowered file is the engine's; nothing here runs but the functions that the nodes call. What must always
//! hold: a file that loads runs, and a mistake is refused at load with its line, a caret and advice.

pub mod expression;
pub mod json;
pub mod suggest;
pub mod time;
pub mod value;
