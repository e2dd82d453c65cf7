//! The demo's directory: what a run is, so that another process can go on with it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    app::streams::files,
    cli::Failure,
    config::{Config, Layers},
    streams::file::LoadedFile,
};

/// Marks a directory as the demo's, which may therefore be emptied for a new run.
const RUN_FILE: &str = "demo.json";

/// Who has not used a coupon for this long is reminded: `after` of the join below.
pub const REMINDED_AFTER_MS: i64 = 9_000;

/// What the demo changes in the shipped topologies, so that windows close and reminders come while somebody watches:
/// a minute is 2 s, a day without use is [`REMINDED_AFTER_MS`], and inputs count as silent after 3 s.
const SHORTER: [(&str, &str); 3] = [
    ("tumbling = \"1m\", grace = \"10s\"", "tumbling = \"2s\", grace = \"1s\""),
    ("after = \"24h\", grace = \"1m\"", "after = \"9s\", grace = \"2s\""),
    ("idle_close = \"30s\"", "idle_close = \"3s\""),
];

/// One run: all that its users do follows from this.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// What the users do.
    pub seed: u64,
    /// Seats of the campaign.
    pub seats: i64,
    /// How many want one.
    pub users: i64,
    /// The campaign; 0 until it is created.
    pub coupon: i64,
}

/// The directory of one run.
pub struct DemoData {
    directory: PathBuf,
    resumed: Option<Run>,
}

impl DemoData {
    /// A new run empties the directory of an older one; `resume` goes on with it.
    pub fn open(directory: &Path, resume: bool) -> Result<Self, Failure> {
        let run_file = directory.join(RUN_FILE);
        let directory = directory.to_path_buf();
        if resume {
            let text = std::fs::read_to_string(&run_file).map_err(|error| {
                Failure::Usage(format!(
                    "there is no demo to resume in {} ({error}); run `sluice demo` first, or name its --data-dir",
                    directory.display()
                ))
            })?;
            let run = serde_json::from_str(&text)
                .map_err(|error| Failure::of(format!("reading {}", run_file.display()), error))?;
            return Ok(Self { directory, resumed: Some(run) });
        }
        let is_empty = std::fs::read_dir(&directory).map_or(true, |mut entries| entries.next().is_none());
        if !is_empty && !run_file.exists() {
            return Err(Failure::Usage(format!(
                "{} holds something that is not a demo's; name another --data-dir",
                directory.display()
            )));
        }
        let prepare = || {
            if !is_empty {
                std::fs::remove_dir_all(&directory)?;
            }
            std::fs::create_dir_all(&directory)
        };
        prepare().map_err(|error| Failure::of(format!("preparing {}", directory.display()), error))?;
        Ok(Self { directory, resumed: None })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The answers of the crowd.
    pub fn answers(&self) -> PathBuf {
        self.directory.join("answers.jsonl")
    }

    /// Embedded parts in this directory, whatever the configuration says, on a free port unless one is asked for.
    pub fn configure(&self, layers: Layers) -> Result<Config, Failure> {
        let directory = self.directory.display().to_string();
        let default_listen = layers.values["http.listen"].origin.starts_with("config/default.toml");
        let mut layers = layers;
        for (key, value) in [
            ("data_dir", directory.as_str()),
            ("log.kind", "embedded"),
            ("log.path", "{data_dir}/log.sqlite"),
            ("gate.kind", "embedded"),
            ("ledger.url", "sqlite://{data_dir}/ledger.sqlite"),
            ("streams.state_dir", "{data_dir}/state"),
            // After a kill the lanes are free again before the inputs count as silent.
            ("relay.lease_ms", "1000"),
            ("topics.replication_factor", "1"),
            ("admin.token", ""),
        ] {
            layers = layers.set(key, value, "sluice demo");
        }
        if default_listen {
            layers = layers.set("http.listen", "127.0.0.1:0", "sluice demo");
        }
        Ok(Config::from_layers(layers)?)
    }

    /// The shipped topologies with shorter times, written beside the data so that anybody can see what ran.
    pub fn topologies(&self) -> Result<Vec<LoadedFile>, Failure> {
        let mut sources = Vec::new();
        for name in ["coupon-statistics", "coupon-notification"] {
            let shipped = files::read(&format!("{}{name}", files::BUILTIN_PREFIX))?;
            let mut text = shipped.text;
            for (shipped, shorter) in SHORTER {
                text = text.replace(shipped, shorter);
            }
            let path = self.directory.join(format!("{name}.toml"));
            std::fs::write(&path, &text)
                .map_err(|error| Failure::of(format!("writing {}", path.display()), error))?;
            sources.push(files::Source { name: path.display().to_string(), text });
        }
        files::load_all(&sources)
    }

    /// The run to go on with, or a new one.
    pub fn run(&self, seats: i64, users: i64) -> Result<Run, Failure> {
        if let Some(run) = &self.resumed {
            return Ok(run.clone());
        }
        let seed = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let run = Run { seed, seats, users, coupon: 0 };
        self.remember(&run)?;
        Ok(run)
    }

    /// Writes the run down, whole or not at all.
    pub fn remember(&self, run: &Run) -> Result<(), Failure> {
        let file = self.directory.join(RUN_FILE);
        let new = self.directory.join("demo.json.new");
        let text = serde_json::to_string(run).map_err(|error| Failure::of("demo.json", error))?;
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &file))
            .map_err(|error| Failure::of(format!("writing {}", file.display()), error))
    }

    /// How to look at what was left behind.
    pub fn how_to_look(&self) -> String {
        let directory = self.directory.display();
        format!(
            "data left in {directory}; look at it with SQL:\n  \
             sqlite3 {directory}/ledger.sqlite \"select status, count(*) from user_coupons group by status\"\n  \
             sqlite3 {directory}/ledger.sqlite \"select * from coupon_history order by at desc limit 5\""
        )
    }
}
