//! [`Named`]: the name of an operator, given or generated (Kafka's `Named` / `NamedInternal`).
//!
//! Naming an operator still takes a number from the counter that generated names share, so that naming one operator
//! does not rename the others.

use super::graph::Graph;
use crate::streams::error::{Result, StreamsError};

/// The name of an operator. `Named::default()` lets the builder generate one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named(Option<String>);

impl Named {
    /// This name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Some(name.into()))
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// The name, or `prefix` and a number.
    pub(crate) fn or_generate(&self, graph: &mut Graph, prefix: &str) -> String {
        let generated = graph.new_processor_name(prefix);
        match &self.0 {
            Some(name) => graph.checked_name(name.clone()),
            None => generated,
        }
    }

    /// The name with a suffix, or `prefix` and a number.
    pub(crate) fn suffixed_or_generate(&self, suffix: &str, graph: &mut Graph, prefix: &str) -> String {
        let generated = graph.new_processor_name(prefix);
        match &self.0 {
            Some(name) => graph.checked_name(format!("{name}{suffix}")),
            None => generated,
        }
    }

    /// The name with a suffix, or another name.
    pub(crate) fn suffixed_or(&self, suffix: &str, other: &str) -> String {
        self.0.as_ref().map_or_else(|| other.to_owned(), |name| format!("{name}{suffix}"))
    }
}

impl From<&str> for Named {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for Named {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

/// Refuses what cannot be part of a topic's name.
pub(crate) fn validate(name: &str) -> Result<()> {
    let refuse = |reason: &str| Err(StreamsError::Topology(format!("name \"{name}\" is illegal: {reason}")));
    if name.is_empty() {
        return refuse("it is empty");
    }
    if name == "." || name == ".." {
        return refuse("it is a directory");
    }
    if name.len() > 249 {
        return refuse("it is longer than 249 characters");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return refuse("only ASCII letters, digits, '.', '_' and '-' are allowed");
    }
    Ok(())
}
