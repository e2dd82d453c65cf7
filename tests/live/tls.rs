//! Redis and Postgres over TLS, with a certificate authority of the test's own: issuing works and everything that was said
//! to them was encrypted; a server that is not trusted is named before anything starts. (A Redis without TLS does not answer at all, which
//! looks like one that is away.)

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use sqlx::AssertSqlSafe;

use crate::{
    deployment::eventually,
    invariants::Campaign,
    private_redis::PrivateRedis,
    services::Services,
    world::{PATIENCE, World},
};

const SEATS: i64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_and_postgres_are_spoken_to_over_tls() {
    let Some(services) = Services::private_only("tls", "postgres") else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let trusted = Authority::new(&directory.path().join("trusted"));
    let stranger = Authority::new(&directory.path().join("stranger"));
    let (certificate, key) = trusted.certificate();
    let (redis, port) = PrivateRedis::start_tls(&certificate, &key).expect("a service that was there");
    let tls_redis = format!("rediss://127.0.0.1:{port}");
    encrypt(&services.postgres, &certificate, &key).await;

    let mut world = World::on(services, redis).await;
    let plain = world.deployment.database.clone();
    let tls_postgres = |authority: &Authority| {
        format!("{plain}?sslmode=verify-full&sslrootcert={}", authority.file().display())
    };
    world.deployment.set("SLUICE__REDIS__URL", &tls_redis);
    world.deployment.set("SLUICE__LEDGER__URL", tls_postgres(&trusted));
    world.deployment.set("SSL_CERT_FILE", trusted.file().display());
    world.deployment.set("SLUICE__REDIS__TIMEOUT_MS", 5_000);
    let world = Arc::new(world);
    let service = world.deployment.start("service", "api,relay,streams", &[]).await;
    let coupon = world.deployment.open_campaign(&service, SEATS as u64).await;
    world.rush(std::slice::from_ref(&service.url), coupon, 1..=30, async {}).await;
    everything_was_encrypted(&plain).await;
    world.judge([service], &[Campaign::of(coupon, SEATS)]).await;

    // A stranger's word is not taken for it, and the message says which address and why.
    let no_tls_postgres = format!("{}?sslmode=require", Services::shared().expect("a service").postgres);
    // What the environment trusts counts beside the file that the URL names.
    let (file, ledger) = (stranger.file().display().to_string(), tls_postgres(&stranger));
    let refused: [(&str, &[(&str, &str)], &[&str]); 3] = [
        ("stranger-redis", &[("SSL_CERT_FILE", &file)], &["redis.url", "certificate"]),
        (
            "stranger-postgres",
            &[("SSL_CERT_FILE", &file), ("SLUICE__LEDGER__URL", &ledger)],
            &["ledger", "certificate"],
        ),
        ("plain-postgres", &[("SLUICE__LEDGER__URL", &no_tls_postgres)], &["ledger", "does not support TLS"]),
    ];
    for (name, settings, words) in refused {
        let said = world.deployment.refuses_to_start(name, settings).await;
        assert!(words.iter().all(|word| said.contains(word)), "{name}: {words:?} in\n{said}");
    }
}

/// The server's own view: each connection of sluice to this database is encrypted.
async fn everything_was_encrypted(database: &str) {
    let pool = sqlx::PgPool::connect(database).await.expect("Postgres answers");
    let (connections, encrypted): (i64, i64) = sqlx::query_as(
        "select count(*), count(*) filter (where ssl) from pg_stat_ssl join pg_stat_activity using (pid)
         where application_name = 'sluice'",
    )
    .fetch_one(&pool)
    .await
    .expect("the view of connections");
    assert!(connections > 0 && connections == encrypted, "{encrypted} of {connections} connections");
    pool.close().await;
}

/// Gives the server this certificate, through SQL: wherever it runs, its files are its own.
async fn encrypt(postgres: &str, certificate: &Path, key: &Path) {
    let pool = sqlx::PgPool::connect(postgres).await.expect("Postgres answers");
    let run = async |sql: String| {
        sqlx::query(AssertSqlSafe(sql)).execute(&pool).await.expect("the server does it");
    };
    for (name, file) in [("test.pem", certificate), ("test.key", key)] {
        let pem = fs::read_to_string(file).expect("a file");
        let lines = format!("select unnest(string_to_array('{}', chr(10)))", pem.trim_end());
        run(format!("copy ({lines}) to program 'umask 077; cat > {name}'")).await;
    }
    run("alter system set ssl_cert_file = 'test.pem'".into()).await;
    run("alter system set ssl_key_file = 'test.key'".into()).await;
    run("alter system set ssl = on".into()).await;
    run("select pg_reload_conf()".into()).await;
    let speaks_tls = || async {
        let url = format!("{postgres}?sslmode=require");
        let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.ok()?;
        sqlx::query("select 1").execute(&mut connection).await.ok().map(drop)
    };
    assert!(
        eventually(PATIENCE.min(Duration::from_secs(20)), speaks_tls).await.is_some(),
        "no TLS after the reload"
    );
    pool.close().await;
}

/// A certificate authority, made with `openssl`.
struct Authority(PathBuf);

impl Authority {
    fn new(directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("a directory");
        let authority = Self(directory.to_owned());
        authority.openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=sluice-test-authority -keyout ca.key -out ca.pem \
             -addext keyUsage=critical,keyCertSign",
        );
        authority
    }

    /// What a client must know.
    fn file(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// Certificate and key of a server on this machine.
    fn certificate(&self) -> (PathBuf, PathBuf) {
        fs::write(self.0.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost").expect("a file");
        self.openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr");
        self.openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile names -out server.pem",
        );
        (self.0.join("server.pem"), self.0.join("server.key"))
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(&self.0)
            .output()
            .expect("openssl is on the path (Debian: apt-get install openssl)");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
