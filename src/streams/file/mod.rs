//! Topologies as files: `topologies/*.toml` read, checked, planned and lowered onto the engine.
//!
//! | file | step |
//! |---|---|
//! | [`value`], [`time`], [`json`] | what moves: datums, rows, and records to rows and back |
//! | [`reader`], [`parse`](mod@parse), [`diagnostic`] | text to the shape of the file; mistakes with their line and a caret |
//! | [`plan`](mod@plan) | names and types resolved, unread columns gone, repartitions and state decided |
//! | [`expression`] | SQL in the file's strings: parsed, typed, compiled |
//!
//! A record's way through a lowered file is the engine's; nothing here runs but the functions that the nodes call. What must always
//! hold: a file that loads runs, and a mistake is refused at load with its line, a caret and advice.

pub mod diagnostic;
pub mod expression;
pub mod json;
pub mod parse;
pub mod plan;
pub mod reader;
pub mod suggest;
pub mod time;
pub mod value;
pub mod window;
