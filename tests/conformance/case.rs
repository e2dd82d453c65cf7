//! A case as the files hold it, and typed access to the fields of its steps.

use serde_json::{Map, Value as Json};

/// A JSON object with a place for error messages.
#[derive(Clone, Copy)]
pub struct Step<'a>(pub &'a Map<String, Json>);

impl<'a> Step<'a> {
    /// The object behind a JSON value.
    pub fn of(json: &'a Json) -> Result<Self, String> {
        json.as_object().map(Step).ok_or_else(|| format!("not an object: {json}"))
    }

    /// A field that must be text.
    pub fn text(&self, field: &str) -> Result<&'a str, String> {
        self.opt_text(field).ok_or_else(|| format!("step {} has no {field}", self.op()))
    }

    /// A field that may be text.
    pub fn opt_text(&self, field: &str) -> Option<&'a str> {
        self.0.get(field)?.as_str()
    }

    /// A field that must be a number.
    pub fn number(&self, field: &str) -> Result<i64, String> {
        self.opt_number(field).ok_or_else(|| format!("step {} has no {field}", self.op()))
    }

    /// A field that may be a number.
    pub fn opt_number(&self, field: &str) -> Option<i64> {
        self.0.get(field)?.as_i64()
    }

    /// A flag, with its default.
    pub fn flag(&self, field: &str, default: bool) -> bool {
        self.0.get(field).and_then(Json::as_bool).unwrap_or(default)
    }

    /// A list; empty when absent.
    pub fn list(&self, field: &str) -> &'a [Json] {
        self.0.get(field).and_then(Json::as_array).map_or(&[], Vec::as_slice)
    }

    /// A list of text; empty when absent.
    pub fn texts(&self, field: &str) -> Vec<&'a str> {
        self.list(field).iter().filter_map(Json::as_str).collect()
    }

    /// A nested object.
    pub fn object(&self, field: &str) -> Result<Step<'a>, String> {
        let json = self.0.get(field).ok_or_else(|| format!("step {} has no {field}", self.op()))?;
        Step::of(json)
    }

    /// What the step does.
    pub fn op(&self) -> &'a str {
        self.opt_text("op").unwrap_or("(no op)")
    }
}
