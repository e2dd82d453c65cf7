//! Join steps.

use crate::{case::Step, interpreter::Interpreter};

/// Adds a step of this family.
pub fn apply(interpreter: &mut Interpreter, step: Step<'_>) -> Result<(), String> {
    let _ = interpreter;
    Err(format!("unknown step {}", step.op()))
}
