//! `sluice topology diff`: files against their locks, or against what a server runs.

use std::{collections::BTreeMap, io::IsTerminal};

use serde_json::{Value, json};

use super::lock;
use crate::{
    app::{block_on, streams::files},
    cli::{Failure, TopologyDiffArgs},
    streams::file::{
        LoadedFile,
        plan::diff::{Change, Class, diff},
    },
};

/// One file beside what it is compared with.
struct Compared {
    file: String,
    application: String,
    /// What it is compared with, in words.
    with: String,
    /// `None`: there is nothing to compare with.
    changes: Option<Vec<Change>>,
}

/// Compares and prints; the verdict is no as the command's description says.
pub fn run(args: &TopologyDiffArgs) -> Result<(), Failure> {
    let names: Vec<String> =
        args.files.iter().filter(|name| !name.ends_with(".test.toml")).cloned().collect();
    let loaded = files::load_named(&names)?;
    let compared: Vec<Compared> = match &args.server {
        Some(server) => {
            let running = running(server, args.token.as_deref())?;
            loaded.iter().map(|file| with_server(file, server, &running)).collect()
        }
        None => loaded.iter().map(with_lock).collect::<Result<_, _>>()?,
    };
    if args.json {
        println!("{:#}", Value::Array(compared.iter().map(Compared::json).collect()));
    } else {
        let colour = std::io::stdout().is_terminal();
        compared.iter().for_each(|one| print!("{}", one.text(colour)));
    }
    let differs = |one: &Compared| one.changes.as_ref().is_none_or(|changes| !changes.is_empty());
    let refused = |one: &Compared| one.changes.iter().flatten().any(|change| change.class.is_refused());
    let fails = compared.iter().any(|one| if args.check { differs(one) } else { refused(one) });
    if fails { Err(Failure::Verdict) } else { Ok(()) }
}

fn with_lock(file: &LoadedFile) -> Result<Compared, Failure> {
    let path = lock::path(file);
    let changes = lock::read(&path)?.map(|locked| diff(&locked, &file.plan));
    Ok(Compared::new(file, path.display().to_string(), changes))
}

fn with_server(file: &LoadedFile, server: &str, running: &BTreeMap<String, Value>) -> Compared {
    let plan = running.get(&*file.topology.application_id);
    Compared::new(file, server.to_owned(), plan.map(|plan| diff(plan, &file.plan)))
}

/// Plans by application.
fn running(server: &str, token: Option<&str>) -> Result<BTreeMap<String, Value>, Failure> {
    let url = format!("{}/api/streams/topologies", server.trim_end_matches('/'));
    let failed = |error: &dyn std::fmt::Display| Failure::of(&url, error);
    let answer: Value = block_on(async {
        let mut request = reqwest::Client::new().get(&url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|error| failed(&error))?;
        let status = response.status();
        let text = response.text().await.map_err(|error| failed(&error))?;
        if !status.is_success() {
            let problem: Value = serde_json::from_str(&text).unwrap_or_default();
            let detail = problem["detail"].as_str().unwrap_or("no topologies run there");
            return Err(failed(&format!("{status}: {detail}")));
        }
        serde_json::from_str(&text).map_err(|error| failed(&error))
    })?;
    let items = answer["items"].as_array().into_iter().flatten();
    Ok(items
        .filter_map(|item| Some((item["application"].as_str()?.to_owned(), item["plan"].clone())))
        .collect())
}

impl Compared {
    fn new(file: &LoadedFile, with: String, changes: Option<Vec<Change>>) -> Self {
        let application = file.topology.application_id.to_string();
        Self { file: file.name.clone(), application, with, changes }
    }

    fn json(&self) -> Value {
        json!({ "file": self.file, "application": self.application, "with": self.with, "changes": self.changes })
    }

    fn text(&self, colour: bool) -> String {
        let Some(changes) = &self.changes else {
            let what = match self.with.starts_with("http") {
                true => format!("{} does not run {}", self.with, self.application),
                false => format!(
                    "there is no {}; `sluice topology plan --write {}` writes it",
                    self.with, self.file
                ),
            };
            return format!("{}: {what}\n", self.file);
        };
        if changes.is_empty() {
            return format!("{}: as in {}\n", self.file, self.with);
        }
        let mut text = format!("{}: differs from {}\n", self.file, self.with);
        for change in changes {
            let class = format!("{:<24}", change.class.words());
            text += &format!("  {} {change}\n", if colour { painted(change.class, &class) } else { class });
        }
        text
    }
}

/// Green passes unnoticed, yellow is to be known, red is not done.
fn painted(class: Class, text: &str) -> String {
    let code = match class {
        Class::Transparent => 32,
        Class::ForwardOnly | Class::NewNode => 33,
        Class::RemovedNode | Class::NewStateVersion => 35,
        Class::NeedsStateVersion | Class::Refused => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}
