//! Compares what a case expects with what happened, and says where they first differ.

use serde_json::{Value as Json, json};

/// Where two runs part.
pub struct Difference {
    /// Which part, as `output.out[3]`.
    pub place: String,
    /// What the case says.
    pub expected: String,
    /// What happened.
    pub actual: String,
}

impl Difference {
    /// A difference outside the records.
    pub fn new(place: impl Into<String>, expected: impl ToString, actual: impl ToString) -> Self {
        Self { place: place.into(), expected: expected.to_string(), actual: actual.to_string() }
    }
}

/// The first difference of two lists of records.
pub fn records(place: &str, expected: &[Json], actual: &[Json]) -> Option<Difference> {
    let length = expected.len().max(actual.len());
    (0..length).find_map(|index| {
        let (left, right) = (expected.get(index).map(normal), actual.get(index).map(normal));
        let show = |record: &Option<Json>| record.as_ref().map_or("(nothing)".into(), Json::to_string);
        (left != right).then(|| Difference::new(format!("{place}[{index}]"), show(&left), show(&right)))
    })
}

/// Header values of dead letters that are the reference's own: class names and texts of Java.
const REFERENCE_SPECIFIC: [&str; 3] =
    ["__streams.errors.exception", "__streams.errors.message", "__streams.errors.stacktrace"];

fn normal(record: &Json) -> Json {
    let mut record = record.clone();
    if let Some(headers) = record.get_mut("headers").and_then(Json::as_array_mut) {
        for header in headers {
            if header.get(0).and_then(Json::as_str).is_some_and(|name| REFERENCE_SPECIFIC.contains(&name)) {
                header[1] = json!("<reference>");
            }
        }
    }
    record
}

/// The first difference of two descriptions; with `unordered`, lists of stores are sets.
pub fn descriptions(expected: &str, actual: &str, unordered: bool) -> Option<Difference> {
    let (expected_lines, actual_lines): (Vec<_>, Vec<_>) =
        (expected.lines().collect(), actual.lines().collect());
    let length = expected_lines.len().max(actual_lines.len());
    let line = |lines: &[&str], index: usize| -> String {
        let line = lines.get(index).copied().unwrap_or("(end)");
        if unordered { with_sorted_stores(line) } else { line.to_owned() }
    };
    (0..length).find_map(|index| {
        let (left, right) = (line(&expected_lines, index), line(&actual_lines, index));
        (left != right).then(|| Difference::new(format!("description line {}", index + 1), left, right))
    })
}

fn with_sorted_stores(line: &str) -> String {
    let Some((head, rest)) = line.split_once("(stores: [") else { return line.to_owned() };
    let Some((stores, tail)) = rest.split_once(']') else { return line.to_owned() };
    let mut stores: Vec<&str> = stores.split(", ").collect();
    stores.sort_unstable();
    format!("{head}(stores: [{}]{tail}", stores.join(", "))
}

/// The case with one expected value changed, and which; `None` when it expects no record. `turn` varies the field.
pub fn changed(case: &Json, turn: usize) -> Option<(String, Json)> {
    let mut case = case.clone();
    if let Some(text) = case["description"].as_str() {
        case["description"] = json!(text.replacen("-->", "<--", 1));
        return Some(("description".into(), case));
    }
    let (topic, records) =
        case["output"].as_object_mut()?.iter_mut().find(|(_, list)| list.get(0).is_some())?;
    let record = records.as_array_mut()?.last_mut()?;
    let field = ["key", "value", "ts", "at"][turn % 4];
    let place = format!("output.{topic}, {field} of the last record");
    let value = record.get_mut(field)?;
    *value = match &*value {
        Json::Number(number) => json!(number.as_i64()? - 1),
        Json::String(text) => json!(format!("{text}!")),
        Json::Null => json!("!"),
        other => json!([other]),
    };
    Some((place, case))
}
