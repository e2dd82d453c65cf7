//! Requests made from the API's own description, and answers judged by it.
//!
//! The document says which operations there are, what each takes and what it may answer. [`Fuzzer::request`] makes a
//! request of one of them: mostly right, in parts anything. [`Fuzzer::judge`] demands of the answer that the document
//! knows its status, its media type and every field of its body, and that it is not a 5xx. One seed gives one sequence.

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, Value, json};

/// A request of one operation.
#[derive(Clone, Debug)]
pub struct Described {
    pub method: String,
    /// Filled in, with its query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The operation's path as the document has it.
    template: String,
}

pub struct Fuzzer {
    document: Value,
    random: StdRng,
    /// Method and path of every operation under `/api/`.
    operations: Vec<(String, String)>,
    /// How many requests each operation got and which statuses it answered.
    pub seen: std::collections::BTreeMap<String, usize>,
}

/// Out of a hundred values this many are anything at all.
const ANYTHING: u32 = 12;

impl Fuzzer {
    pub fn new(document: Value, seed: u64) -> Self {
        let mut operations = Vec::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            let methods = item.as_object().expect("operations").keys();
            operations.extend(methods.map(|method| (method.to_uppercase(), path.clone())));
        }
        operations.retain(|(_, path)| path.starts_with("/api/"));
        Self { document, random: StdRng::seed_from_u64(seed), operations, seen: Default::default() }
    }

    /// The next request.
    pub fn request(&mut self) -> Described {
        let (method, template) = self.operations.choose(&mut self.random).expect("operations").clone();
        let operation = self.operation(&method, &template).clone();
        let mut path = template.clone();
        let (mut query, mut headers) = (Vec::new(), Vec::new());
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().expect("a name");
            let required = parameter["required"] == true;
            if !required && self.one_in(2) {
                continue;
            }
            let text = match self.value(&parameter["schema"], 0) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            match parameter["in"].as_str().expect("a place") {
                // An empty segment would be another path, which no operation describes.
                "path" if text.is_empty() => path = path.replace(&format!("{{{name}}}"), "-"),
                "path" => path = path.replace(&format!("{{{name}}}"), &escaped(&text)),
                "query" => query.push(format!("{name}={}", escaped(&text))),
                // What no header may hold never leaves a client.
                _ if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) => {
                    headers.push((name.to_owned(), text));
                }
                _ => {}
            }
        }
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        let mut body = match schema {
            Value::Null => Vec::new(),
            schema => self.value(schema, 0).to_string().into_bytes(),
        };
        if !body.is_empty() && self.one_in(25) {
            // A body that broke off, or has one byte of something else.
            let at = self.random.random_range(0..body.len());
            if self.one_in(2) { body.truncate(at) } else { body[at] = self.random.random() }
        }
        Described { method, path, headers, body, template }
    }

    /// Whether this may be the answer.
    pub fn judge(
        &mut self,
        request: &Described,
        status: u16,
        media: &str,
        body: &Value,
    ) -> Result<(), String> {
        *self.seen.entry(format!("{} {} {status}", request.method, request.template)).or_default() += 1;
        if status >= 500 {
            return Err(format!("a {status}"));
        }
        let operation = self.operation(&request.method, &request.template);
        let response = &operation["responses"][status.to_string()];
        if response.is_null() {
            return Err(format!("the document does not know of {status} here"));
        }
        let content = &response["content"][media];
        if content.is_null() {
            return Err(format!("the document does not know of `{media}` for {status}"));
        }
        self.fits(&content["schema"], body, "body")
    }

    fn operation(&self, method: &str, template: &str) -> &Value {
        &self.document["paths"][template][method.to_lowercase()]
    }

    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(target) => self.document.pointer(&target[1..]).expect("references resolve"),
            None => schema,
        }
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.random.random_range(0..count) == 0
    }

    /// A value for a schema, or anything.
    fn value(&mut self, schema: &Value, depth: u32) -> Value {
        if self.random.random_range(0..100) < ANYTHING {
            return self.anything(depth);
        }
        let schema = self.resolved(schema).clone();
        for list in ["oneOf", "anyOf"] {
            if let Some(choices) = schema[list].as_array() {
                let choice = choices.choose(&mut self.random).expect("a choice").clone();
                return self.value(&choice, depth);
            }
        }
        if let Some(values) = schema["enum"].as_array() {
            return values.choose(&mut self.random).expect("a value").clone();
        }
        let types = match &schema["type"] {
            Value::Array(types) => types.clone(),
            one => vec![one.clone()],
        };
        match types.choose(&mut self.random).and_then(Value::as_str) {
            Some("integer") => {
                let least = schema["minimum"].as_i64().unwrap_or(i64::MIN);
                let most = schema["maximum"].as_i64().unwrap_or(i64::MAX);
                let near = least.saturating_add(self.random.random_range(0..5));
                let wide = self.random.random_range(least..=most);
                json!(
                    *[near, near, near, 20_000.max(least), most, wide].choose(&mut self.random).expect("one")
                )
            }
            Some("boolean") => json!(self.random.random::<bool>()),
            Some("null") => Value::Null,
            Some("string") if schema["format"] == "date-time" => {
                let times =
                    ["2020-01-01T00:00:00Z", "2099-12-31T23:59:59.999999+09:00", "2026-11-30T00:00:00-23:59"];
                json!(times.choose(&mut self.random).expect("one"))
            }
            Some("string") => {
                let least = schema["minLength"].as_u64().unwrap_or(0) as usize;
                let most = schema["maxLength"].as_u64().unwrap_or(40) as usize;
                let length =
                    *[least, least + 1, 8.clamp(least, most), most].choose(&mut self.random).expect("one");
                json!(self.text(length))
            }
            Some("array") => {
                let items = schema["items"].clone();
                (0..self.random.random_range(0..3)).map(|_| self.value(&items, depth + 1)).collect()
            }
            _ => {
                let required: Vec<&str> =
                    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let mut object = Map::new();
                for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                    let left_out = if required.contains(&name.as_str()) { 30 } else { 3 };
                    if !self.one_in(left_out) {
                        object.insert(name.clone(), self.value(property, depth + 1));
                    }
                }
                if self.one_in(20) {
                    let name = self.text(5);
                    object.insert(name, self.anything(depth + 1));
                }
                Value::Object(object)
            }
        }
    }

    fn anything(&mut self, depth: u32) -> Value {
        let numbers = [0, -1, 1, i64::MAX, i64::MIN, 1 << 53, 2_147_483_648];
        match self.random.random_range(0..if depth < 3 { 9 } else { 7 }) {
            0 => Value::Null,
            1 => json!(self.random.random::<bool>()),
            2 => json!(numbers.choose(&mut self.random)),
            3 => json!(self.random.random::<f64>() * 1e300),
            4 => json!(u64::MAX),
            5 | 6 => {
                let length = self.random.random_range(0..40);
                json!(self.text(length))
            }
            7 => (0..self.random.random_range(0..4)).map(|_| self.anything(depth + 1)).collect(),
            _ => {
                let name = self.text(3);
                json!({ name: self.anything(depth + 1) })
            }
        }
    }

    /// Text of so many characters, most of them harmless.
    fn text(&mut self, length: usize) -> String {
        let odd = [
            '\0',
            '\n',
            '\u{7f}',
            '"',
            '\'',
            ';',
            '%',
            '한',
            '\u{1f600}',
            '\u{202e}',
            '\u{fffd}',
            ' ',
            '/',
            '\\',
        ];
        (0..length)
            .map(|_| match self.one_in(15) {
                true => *odd.choose(&mut self.random).expect("one"),
                false => self.random.random_range('a'..='z'),
            })
            .collect()
    }

    /// Whether a value is as the schema says; where it is not, the place.
    fn fits(&self, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
        let schema = self.resolved(schema);
        for list in ["oneOf", "anyOf"] {
            if let Some(choices) = schema[list].as_array() {
                let fitting = choices.iter().filter(|choice| self.fits(choice, value, place).is_ok()).count();
                return if fitting == 0 { Err(format!("{place}: {value} fits no choice")) } else { Ok(()) };
            }
        }
        if let Some(values) = schema["enum"].as_array() {
            return if values.contains(value) {
                Ok(())
            } else {
                Err(format!("{place}: {value} is not listed"))
            };
        }
        let is = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let allowed = match &schema["type"] {
            Value::Array(types) => types.iter().any(|one| one == is),
            Value::Null => true,
            one => one == is,
        };
        if !allowed {
            return Err(format!("{place}: {value} is not {}", schema["type"]));
        }
        let below =
            schema["minimum"].as_i64().zip(value.as_i64()).is_some_and(|(least, value)| value < least);
        let above = schema["maximum"].as_i64().zip(value.as_i64()).is_some_and(|(most, value)| value > most);
        if below || above {
            return Err(format!("{place}: {value} is out of its range"));
        }
        for item in value.as_array().into_iter().flatten() {
            self.fits(&schema["items"], item, &format!("{place}[]"))?;
        }
        if let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object()) {
            for (name, field) in fields {
                let property =
                    properties.get(name).ok_or_else(|| format!("{place}.{name} is not described"))?;
                self.fits(property, field, &format!("{place}.{name}"))?;
            }
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            if let Some(missing) = required.into_iter().find(|name| !fields.contains_key(*name)) {
                return Err(format!("{place}.{missing} is missing"));
            }
        }
        Ok(())
    }
}

/// Percent-encoded, all but letters and digits.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}
