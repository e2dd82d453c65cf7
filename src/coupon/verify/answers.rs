//! What clients were told: a file of one JSON object a line, written while requests are made, read when all is quiet.
//!
//! Only a client can know this, and it must survive the client's own death: a line is written as soon as the answer
//! is there.

use std::{collections::BTreeMap, io::BufRead, path::Path};

use serde::{Deserialize, Serialize};

/// One answer to one issue request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Which campaign was asked.
    pub coupon_id: i64,
    /// For whom.
    pub user_id: i64,
    /// The HTTP status; 0 when no answer came.
    pub status: u16,
    /// The error code, when there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<String>,
}

/// All answers of one (campaign, user) together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Was told that there is one: 201, a replay, or CP007.
    pub yes: bool,
    /// Was told a definite no: sold out, ended, or nothing left behind.
    pub no: bool,
    /// Was once left without knowing: no answer, CP010, an error of the server.
    pub unknown: bool,
}

/// What each (campaign, user) was told.
pub type Answers = BTreeMap<(i64, i64), Told>;

/// Adds an answer.
pub fn add(answers: &mut Answers, answer: &Answer) {
    let told = answers.entry((answer.coupon_id, answer.user_id)).or_default();
    match (answer.status, answer.code.as_deref()) {
        (200 | 201, _) | (_, Some("CP007")) => told.yes = true,
        (_, Some("CP001" | "CP002" | "CP005" | "CP009" | "CP011" | "CP013")) => told.no = true,
        // 4xx without a code: refused at the edge, nothing was begun.
        (400..=499, None) => {}
        _ => told.unknown = true,
    }
}

/// Reads a file of answers. A last line cut short by the writer's death is left out.
pub fn read(path: &Path) -> std::io::Result<Answers> {
    let mut answers = Answers::new();
    for line in std::io::BufReader::new(std::fs::File::open(path)?).lines() {
        if let Ok(answer) = serde_json::from_str::<Answer>(&line?) {
            add(&mut answers, &answer);
        }
    }
    Ok(answers)
}
