//! Steps on windows: windowed groups, emission, cogroups, suppress.

use crate::{case::Step, interpreter::Interpreter};

/// What these steps make besides tables.
pub enum WindowNode {}

/// Adds a step of this family.
pub fn apply(interpreter: &mut Interpreter, step: Step<'_>) -> Result<(), String> {
    let _ = interpreter;
    Err(format!("unknown step {}", step.op()))
}
