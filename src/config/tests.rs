//! Each mistake with its exact message; layers; and the default file held to the code, both ways.

use std::collections::BTreeSet;

use super::{reader::Reader, *};

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variables = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Config::from_layers(Layers::defaults().text(text, "sluice.toml").environment(variables))
}

#[test]
fn defaults_are_valid() {
    let config = load("", &[]).unwrap();
    assert_eq!(config.http.listen, SocketAddr::from(([127, 0, 0, 1], 8080)));
    assert_eq!(config.ledger.url.expose(), "sqlite://data/ledger.sqlite");
    assert_eq!(config.streams.runtime.state_dir, PathBuf::from("data/state"));
    assert_eq!(config.streams.topologies.len(), 2);
    assert!(config.admin_token.is_none());
}

#[test]
fn default_file_and_code_have_the_same_keys() {
    let layers = Layers::defaults();
    let in_file: BTreeSet<String> = layers.values.keys().cloned().collect();
    let mut reader = Reader::new(layers);
    read(&mut reader);
    assert_eq!(reader.read, in_file, "left: keys the code reads; right: keys of config/default.toml");
}

#[test]
fn every_key_of_the_default_file_has_a_comment() {
    let lines: Vec<&str> = DEFAULT_TOML.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let is_key = line.contains(" = ") && !line.starts_with('#');
        if is_key {
            assert!(
                lines[number - 1].starts_with("# "),
                "line {}: `{line}` has no comment above",
                number + 1
            );
        }
    }
}

#[test]
fn environment_wins_over_file_over_default() {
    let file = "data_dir = \"d\"\n[http]\nlisten = \"127.0.0.1:1\"\nmax_in_flight = 7";
    let config = load(file, &[("SLUICE__HTTP__LISTEN", "127.0.0.1:2"), ("SLUICE_TEST_KAFKA", "x")]).unwrap();
    assert_eq!(config.http.listen.port(), 2);
    assert_eq!(config.http.max_in_flight, 7);
    assert_eq!(config.http.body_bytes_max, 16_384);
    assert_eq!(config.ledger.url.expose(), "sqlite://d/ledger.sqlite");
}

#[test]
fn lists_and_tables_come_from_file_or_environment() {
    let file = "[kafka]\nproperties = { \"security.protocol\" = \"ssl\", \"socket.keepalive.enable\" = true }\n\
                bootstrap_servers = \"b:1\"\n[log]\nkind = \"kafka\"\n[streams]\ntopologies = [\"a.toml\"]";
    let section = "[kafka]\nbootstrap_servers = \"b:1\"\n[kafka.properties]\n\"security.protocol\" = \"ssl\"\n\
                   \"socket.keepalive.enable\" = true\n[log]\nkind = \"kafka\"";
    let variables = [
        ("SLUICE__LOG__KIND", "kafka"),
        ("SLUICE__KAFKA__BOOTSTRAP_SERVERS", "b:1"),
        (
            "SLUICE__KAFKA__PROPERTIES",
            "{ \"security.protocol\" = \"ssl\", \"socket.keepalive.enable\" = \"true\" }",
        ),
        ("SLUICE__STREAMS__TOPOLOGIES", "a.toml, b.toml"),
    ];
    for (file, environment, topologies) in
        [(file, &[][..], 1), (section, &variables[3..], 2), ("", &variables[..], 2)]
    {
        let config = load(file, environment).unwrap();
        let LogConfig::Kafka(KafkaConfig { bootstrap_servers, properties, .. }) = config.log else {
            panic!("not kafka")
        };
        assert_eq!(bootstrap_servers, "b:1");
        assert_eq!(properties["security.protocol"], "ssl");
        assert_eq!(properties["socket.keepalive.enable"], "true");
        assert_eq!(config.streams.topologies.len(), topologies);
    }
}

/// One mistake, one message: `file | environment variable and value | message`.
#[test]
fn each_mistake_has_its_message() {
    let check = |text: &str, environment: &[(&str, &str)], expected: &[&str]| {
        let error = load(text, environment).expect_err(text);
        // Lines of the default file move with every comment; they are not what is tested here.
        let origin =
            |at: &str| at.starts_with("config/default.toml:").then(|| "config/default.toml:N".to_owned());
        let found: Vec<String> = (error.0.into_iter())
            .map(|problem| Problem { origin: origin(&problem.origin).unwrap_or(problem.origin), ..problem })
            .map(|problem| problem.to_string())
            .collect();
        assert_eq!(found, expected, "for {text:?} {environment:?}");
    };
    check(
        "[http]\nlistn = \"127.0.0.1:1\"",
        &[],
        &["sluice.toml:2: http.listn: there is no such key\n    Did you mean `http.listen`?"],
    );
    check(
        "",
        &[("SLUICE__HTTP__LISTN", "127.0.0.1:1")],
        &["SLUICE__HTTP__LISTN: http.listn: there is no such key\n    Did you mean SLUICE__HTTP__LISTEN?"],
    );
    check(
        "[relay]\nflavour = 1",
        &[],
        &["sluice.toml:2: relay.flavour: there is no such key\n    \
           [relay] has: batch_rows_max, interval_ms, keep_sent_ms, lease_ms."],
    );
    check(
        "[http]\nmax_in_flight = \"many\"",
        &[],
        &["sluice.toml:2: http.max_in_flight = \"many\": must be a whole number, not text\n    \
           Write a whole number from 1 to 1000000."],
    );
    check(
        "[http]\nmax_in_flight = 0",
        &[],
        &[
            "sluice.toml:2: http.max_in_flight = 0: is out of range\n    Write a whole number from 1 to 1000000.",
        ],
    );
    check(
        "[http]\nlisten = 8080",
        &[],
        &["sluice.toml:2: http.listen = 8080: must be text, not a number\n    \
           Write it in quotes: listen = \"...\"."],
    );
    check(
        "[http]\nlisten = \"here\"",
        &[],
        &["sluice.toml:2: http.listen = \"here\": is not an address to listen on\n    \
           Write HOST:PORT, for example \"127.0.0.1:8080\" or \"0.0.0.0:8080\"."],
    );
    check(
        "[log]\nkind = \"kafkaa\"",
        &[],
        &["sluice.toml:2: log.kind = \"kafkaa\": is not one of the choices\n    \
           Did you mean \"kafka\"? Choices: \"embedded\", \"kafka\"."],
    );
    check(
        "",
        &[("SLUICE__LOG__KIND", "kafka")],
        &["config/default.toml:N: kafka.bootstrap_servers = \"\": is needed when log.kind = \"kafka\"\n    \
           Name the brokers, for example \"localhost:9092\", or set log.kind = \"embedded\"."],
    );
    check(
        "[topics]\nreplication_factor = 3",
        &[],
        &[
            "sluice.toml:2: topics.replication_factor = 3: is more than the one copy that log.kind = \"embedded\" keeps\n    \
           Set it to 1, or set log.kind = \"kafka\".",
        ],
    );
    check(
        "[kafka]\nproperties = { \"group.id\" = \"mine\" }",
        &[],
        &["sluice.toml:2: kafka.properties = (hidden): `group.id` cannot be passed through: the group \
           follows from the application id\n    Remove it from the table."],
    );
    check(
        "[kafka.properties]\nsecurity.protocol = \"ssl\"",
        &[],
        &["sluice.toml:1: kafka.properties = (hidden): the value of `security` must be text\n    \
           Names with dots need quotes: \"security.protocol\" = \"SSL\"."],
    );
    check(
        "[ledger]\nurl = \"mysql://root:hunter2@h/d\"",
        &[],
        &["sluice.toml:2: ledger.url = \"mysql://root:***@h/d\": is not a database this service knows\n    \
           Write sqlite://PATH or postgres://user:password@host:port/database."],
    );
    check(
        "[admin]\ntoken = \"two words\"",
        &[],
        &["sluice.toml:2: admin.token = (hidden): holds a character that no HTTP header can carry\n    \
           Use printable ASCII without spaces, for example the output of `openssl rand -hex 32`."],
    );
    check(
        "[streams]\ncommit_interval_ms = 5",
        &[],
        &["sluice.toml:2: streams.commit_interval_ms = 5: is out of range\n    \
           Write a whole number from 20 to 3600000."],
    );
    check(
        "[ledger]\nsync_commits = \"yes\"",
        &[],
        &["sluice.toml:2: ledger.sync_commits = \"yes\": must be true or false\n    \
           Write true or false, without quotes."],
    );
    check(
        "[gate]\npending_timeout_ms = 5000",
        &[],
        &["sluice.toml:2: gate.pending_timeout_ms = 5000: must be longer than an issue can take by \
           ledger.acquire_timeout_ms and statement_timeout_ms, or the sweeper judges issues still on their way\n    \
           Write more than 11000."],
    );
    check(
        "[streams]\ninstance_id = \"a b\"",
        &[],
        &["sluice.toml:2: streams.instance_id = \"a b\": is not a name\n    \
           Use up to 100 letters, digits, dots, dashes and underscores, for example the host's name."],
    );
    check(
        "[streams]\nstate_dir = \"\"",
        &[],
        &["sluice.toml:2: streams.state_dir = \"\": must not be empty\n    \
           Name a file or directory, or remove the key for the default."],
    );
}

#[test]
fn all_mistakes_are_reported_together() {
    let text =
        "data_dirr = \"x\"\n[http]\nlisten = 1\n[gate]\nkind = \"memcached\"\n[telemetry]\nformat = true";
    let error = load(text, &[("SLUICE__RELAY__LEASE_MS", "zero")]).unwrap_err();
    let fields: Vec<&str> = error.0.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(fields, ["data_dirr", "http.listen", "gate.kind", "relay.lease_ms", "telemetry.format"]);
    assert!(error.to_string().starts_with("the configuration has 5 mistakes:\n  sluice.toml:1: data_dirr"));
}

#[test]
fn broken_toml_names_its_line() {
    let error = load("[http]\nlisten = \"127.0.0.1:1\"\nmax_in_flight = = 3\n", &[]).unwrap_err();
    assert_eq!(error.0[0].origin, "sluice.toml:3");
    assert!(error.0[0].message.starts_with("this is not TOML"), "{error}");
}

#[test]
fn secrets_stay_out_of_debug_and_show() {
    let text = "[admin]\ntoken = \"hunter2\"\n[ledger]\nurl = \"postgres://u:hunter2@h/d\"\n[log]\nkind = \"kafka\"\n\
                [kafka]\nbootstrap_servers = \"b:1\"\nproperties = { \"sasl.password\" = \"hunter2\" }";
    let layers = Layers::defaults().text(text, "sluice.toml");
    assert!(!show(&layers).contains("hunter2"));
    let config = Config::from_layers(layers).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(config.admin_token.unwrap().expose(), "hunter2");
}

#[test]
fn a_missing_file_is_a_mistake() {
    let layers = Layers::defaults().file(std::path::Path::new("no/such.toml"));
    let error = Config::from_layers(layers).unwrap_err();
    assert_eq!(error.0[0].origin, "no/such.toml");
}
