//! The door to SQL: one small surface over Postgres and SQLite, so that the ledger is written once.
//!
//! Everything below the ledger's methods goes through [`Db::begin`] (a [`Tx`]: writes) or [`Db::read`] (one query).
//! Both engines understand `$1` parameters; where their SQL differs, [`Db::pick`] chooses.
//!
//! What must always hold:
//! * **A definite no and an unknown outcome are never confused.** Whatever fails before COMMIT is sent has not
//!   happened ([`DbError::is_unknown`] is false); a COMMIT without an understood answer may have happened.
//! * A transaction that is dropped unfinished takes its connection with it, so it can never be continued by the
//!   next borrower, and the server rolls it back.
//! * SQL texts are `'static` and values are parameters, always.

use std::{path::PathBuf, str::FromStr, time::Duration};

use sqlx::{
    ColumnIndex, PgPool, Postgres, Sqlite, SqlitePool,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};

/// How the database is used.
#[derive(Clone, Debug)]
pub struct DbConfig {
    /// Most connections to Postgres; for SQLite, most readers (there is always one writer).
    pub connections_max: u32,
    /// Longest wait for a free connection.
    pub acquire_timeout: Duration,
    /// Longest time of one statement.
    pub statement_timeout: Duration,
    /// SQLite only: sync every commit to the disk (`synchronous=FULL`). Off, a power cut may lose the last commits.
    pub sync_commits: bool,
}

impl Default for DbConfig {
    fn default() -> Self {
        Self {
            connections_max: 8,
            acquire_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(3),
            sync_commits: true,
        }
    }
}

/// Why the database did not do it, split by what the receiver may conclude.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DbError {
    /// It could not be reached, or was lost before COMMIT: nothing happened.
    #[error("the ledger cannot be reached: {0}")]
    Unavailable(String),
    /// A constraint refused it: nothing happened.
    #[error("the ledger refused by `{constraint}`: {message}")]
    Constraint {
        /// The constraint's name as the migrations give it; on SQLite of a unique one, its columns.
        constraint: String,
        /// The database's words.
        message: String,
    },
    /// Two transactions wanted each other's rows: nothing happened, the same again will do.
    #[error("the ledger gave way to another transaction: {0}")]
    Conflict(String),
    /// Any other refusal: nothing happened, and repeating will not help.
    #[error("the ledger refused: {0}")]
    Refused(String),
    /// COMMIT was sent and no answer understood: it may have happened.
    #[error("whether the ledger committed is unknown: {0}")]
    Unknown(String),
    /// A row is not what the schema promises.
    #[error("the ledger holds something unexpected: {0}")]
    Corrupt(String),
}

impl DbError {
    /// May the change have happened?
    pub fn is_unknown(&self) -> bool {
        matches!(self, DbError::Unknown(_))
    }

    /// Does it name this constraint?
    pub fn is_constraint(&self, name: &str) -> bool {
        matches!(self, DbError::Constraint { constraint, .. } if constraint == name)
    }

    fn from_sqlx(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(refusal) = &error else {
            return match &error {
                sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::Decode(_) => DbError::Corrupt(error.to_string()),
                _ => DbError::Unavailable(error.to_string()),
            };
        };
        let message = refusal.message().to_owned();
        let code = refusal.code().unwrap_or_default().into_owned();
        if let Some(constraint) = refusal.constraint() {
            return DbError::Constraint { constraint: constraint.into(), message };
        }
        match code.as_str() {
            // Postgres: serialization failure, deadlock. SQLite: busy, locked, busy snapshot.
            "40001" | "40P01" | "5" | "6" | "517" | "261" => DbError::Conflict(message),
            // Postgres: connection exceptions, operator intervention (shutdown), insufficient resources.
            code if code.len() == 5 && ["08", "57", "53"].contains(&&code[..2]) => {
                DbError::Unavailable(message)
            }
            // SQLite: raise(abort), unique, primary key, check, foreign key.
            "1811" => DbError::Constraint {
                constraint: message.split(':').next().unwrap_or_default().trim().into(),
                message,
            },
            "2067" | "1555" | "275" | "787" => DbError::Constraint {
                constraint: message.split_once(": ").map_or(message.as_str(), |(_, what)| what).trim().into(),
                message,
            },
            _ => DbError::Refused(format!("{message} ({code})")),
        }
    }

    /// What an error of COMMIT itself means: only an answer that says "rolled back" is a no.
    fn from_commit(error: sqlx::Error) -> Self {
        if let sqlx::Error::Database(refusal) = &error {
            let code = refusal.code().unwrap_or_default();
            // Postgres: transaction rollback, integrity violation (deferred), insufficient resources. SQLite: busy, full.
            let rolled_back = (code.len() == 5 && ["40", "23", "53"].contains(&&code[..2]))
                || ["5", "6", "13", "517", "261"].contains(&code.as_ref());
            if rolled_back {
                return DbError::from_sqlx(error);
            }
        }
        DbError::Unknown(error.to_string())
    }
}

/// Result of database calls.
pub type DbResult<T> = Result<T, DbError>;

/// One parameter. A list is an array to Postgres, and to SQLite a JSON text for `json_each` (bytes must then be UTF-8).
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each variant is the type it names")]
pub enum Param<'a> {
    Int(i64),
    OptInt(Option<i64>),
    Bool(bool),
    Text(&'a str),
    OptText(Option<&'a str>),
    Bytes(&'a [u8]),
    Ints(Vec<i64>),
    OptInts(Vec<Option<i64>>),
    Texts(Vec<&'a str>),
    OptTexts(Vec<Option<&'a str>>),
    BytesList(Vec<&'a [u8]>),
}

/// One row of either engine.
pub enum Row {
    /// Of Postgres.
    Postgres(PgRow),
    /// Of SQLite.
    Sqlite(SqliteRow),
}

macro_rules! getter {
    ($(#[$doc:meta])* $name:ident, $type:ty) => {
        $(#[$doc])*
        pub fn $name(&self, column: &'static str) -> DbResult<$type> {
            match self {
                Row::Postgres(row) => get(row, column),
                Row::Sqlite(row) => get(row, column),
            }
        }
    };
}

fn get<'r, R, T>(row: &'r R, column: &'static str) -> DbResult<T>
where
    R: sqlx::Row,
    &'static str: ColumnIndex<R>,
    T: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    row.try_get(column).map_err(|error| DbError::Corrupt(format!("column {column}: {error}")))
}

impl Row {
    getter!(
        /// A whole number.
        int, i64
    );
    getter!(
        /// A whole number or null.
        opt_int, Option<i64>
    );
    getter!(
        /// A text.
        text, String
    );
    getter!(
        /// A text or null.
        opt_text, Option<String>
    );
    getter!(
        /// A truth value.
        bool, bool
    );
    getter!(
        /// Bytes.
        bytes, Vec<u8>
    );

    /// A text that must parse.
    pub fn parsed<T: FromStr<Err = String>>(&self, column: &'static str) -> DbResult<T> {
        self.text(column)?.parse().map_err(|error| DbError::Corrupt(format!("column {column}: {error}")))
    }
}

/// A database: where the ledger lives.
#[derive(Clone)]
pub struct Db {
    pools: Pools,
    config: DbConfig,
}

#[derive(Clone)]
enum Pools {
    Postgres(PgPool),
    /// One writer, so that writers queue in the process instead of failing on the file's lock; readers beside it.
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
    },
}

/// Embedded into the binary; numbered, never edited once released.
static MIGRATIONS_POSTGRES: sqlx::migrate::Migrator = sqlx::migrate!("./migrations/postgres");
static MIGRATIONS_SQLITE: sqlx::migrate::Migrator = sqlx::migrate!("./migrations/sqlite");

impl Db {
    /// Opens `postgres://…` or `sqlite://path`. Connections are made when needed, so a Postgres that is down is
    /// reported by the first use, not here.
    pub async fn open(url: &str, config: DbConfig) -> DbResult<Self> {
        let pools = if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            let options = PgConnectOptions::from_str(url)
                .map_err(|error| DbError::Refused(format!("ledger url: {error}")))?
                .application_name("sluice");
            let pool = PgPoolOptions::new()
                .max_connections(config.connections_max)
                .acquire_timeout(config.acquire_timeout)
                // A ping per acquire is a round trip per request; `begin` replaces a dead connection instead.
                .test_before_acquire(false)
                .connect_lazy_with(options);
            Pools::Postgres(pool)
        } else if let Some(path) = url.strip_prefix("sqlite://") {
            Self::open_sqlite(path, &config).await?
        } else {
            return Err(DbError::Refused(
                "ledger url begins with neither postgres:// nor sqlite://; for an embedded ledger write sqlite://<path of a file>"
                    .into(),
            ));
        };
        Ok(Self { pools, config })
    }

    async fn open_sqlite(path: &str, config: &DbConfig) -> DbResult<Pools> {
        let path = path.split('?').next().unwrap_or_default();
        if path.is_empty() || path.contains(":memory:") {
            return Err(DbError::Refused(
                "an in-memory ledger forgets what it issued; give sqlite://<path of a file>".into(),
            ));
        }
        let file = PathBuf::from(path);
        if let Some(directory) = file.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(|error| {
                DbError::Unavailable(format!("cannot make the directory {}: {error}", directory.display()))
            })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(if config.sync_commits {
                SqliteSynchronous::Full
            } else {
                SqliteSynchronous::Normal
            })
            .foreign_keys(true)
            // Only another process can hold the file: inside this one, writers queue for the one connection.
            .busy_timeout(config.statement_timeout);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(config.acquire_timeout.max(config.statement_timeout))
            .connect_with(options.clone())
            .await
            .map_err(|error| DbError::Unavailable(format!("{}: {error}", file.display())))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(config.connections_max)
            .acquire_timeout(config.acquire_timeout)
            .connect_lazy_with(options.read_only(true));
        Ok(Pools::Sqlite { writer, readers })
    }

    /// Brings the schema up to date; repeating it changes nothing. Returns how many migrations the schema now has.
    pub async fn migrate(&self) -> DbResult<usize> {
        let (result, count) = match &self.pools {
            Pools::Postgres(pool) => {
                (MIGRATIONS_POSTGRES.run(pool).await, MIGRATIONS_POSTGRES.iter().count())
            }
            Pools::Sqlite { writer, .. } => {
                (MIGRATIONS_SQLITE.run(writer).await, MIGRATIONS_SQLITE.iter().count())
            }
        };
        result.map_err(|error| match error {
            sqlx::migrate::MigrateError::VersionMissing(version) => DbError::Refused(format!(
                "its schema has migration {version}, which only a newer version of sluice knows; run that version \
                 (a schema is never taken back)"
            )),
            error => DbError::Refused(format!("migration: {error}")),
        })?;
        Ok(count)
    }

    /// Is it Postgres?
    pub fn is_postgres(&self) -> bool {
        matches!(self.pools, Pools::Postgres(_))
    }

    /// The engine's name, for messages and metrics.
    pub fn engine(&self) -> &'static str {
        self.pick("postgres", "sqlite")
    }

    /// The first for Postgres, the second for SQLite.
    pub fn pick<T>(&self, postgres: T, sqlite: T) -> T {
        if self.is_postgres() { postgres } else { sqlite }
    }

    /// How it is used.
    pub fn config(&self) -> &DbConfig {
        &self.config
    }

    /// One query outside a transaction.
    pub async fn read(&self, sql: &'static str, params: &[Param<'_>]) -> DbResult<Vec<Row>> {
        let mut attempts_left = self.config.connections_max + 1;
        loop {
            let mut connection = self.acquire(false).await?;
            let result = connection.fetch(sql, params, self.config.statement_timeout).await;
            match result {
                // The pool may hold connections to a server that has restarted since; a read may simply be repeated.
                Err(DbError::Unavailable(_)) if attempts_left > 1 && connection.lost => attempts_left -= 1,
                result => return result,
            }
        }
    }

    /// Begins a transaction for writing. On SQLite it waits for the one writer.
    pub async fn begin(&self) -> DbResult<Tx> {
        let mut attempts_left = self.config.connections_max + 1;
        loop {
            let mut connection = self.acquire(true).await?;
            let sql = self.pick("begin", "begin immediate");
            match connection.fetch(sql, &[], self.config.statement_timeout).await {
                Ok(_) => {
                    return Ok(Tx {
                        connection,
                        statement_timeout: self.config.statement_timeout,
                        finished: false,
                    });
                }
                Err(DbError::Unavailable(_)) if attempts_left > 1 && connection.lost => attempts_left -= 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn acquire(&self, to_write: bool) -> DbResult<Connection> {
        let connection = match &self.pools {
            Pools::Postgres(pool) => pool.acquire().await.map(Inner::Postgres),
            Pools::Sqlite { writer, readers } => {
                if to_write { writer } else { readers }.acquire().await.map(Inner::Sqlite)
            }
        };
        connection.map(|inner| Connection { inner, lost: false }).map_err(|error| {
            let never = match &error {
                sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => true,
                // How rustls refuses a certificate; nothing else says so while connecting.
                sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
                _ => false,
            };
            // Waiting helps against a server that is away, not against one that is not trusted.
            if never {
                DbError::Refused(format!("no connection can be made: {error}"))
            } else {
                DbError::Unavailable(error.to_string())
            }
        })
    }

    /// Closes every connection; running transactions finish first.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Postgres(pool) => pool.close().await,
            Pools::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
        }
    }
}

impl std::fmt::Debug for Db {
    /// Without the url: it may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").field("engine", &self.engine()).finish_non_exhaustive()
    }
}

/// A borrowed connection. One that failed or was interrupted is *lost*: it does not return to its pool.
struct Connection {
    inner: Inner,
    lost: bool,
}

enum Inner {
    Postgres(PoolConnection<Postgres>),
    Sqlite(PoolConnection<Sqlite>),
}

fn postgres_query<'q>(
    sql: &'static str,
    params: &'q [Param<'q>],
) -> sqlx::query::Query<'q, Postgres, sqlx::postgres::PgArguments> {
    let mut query = sqlx::query(sql);
    for param in params {
        query = match param {
            Param::Int(value) => query.bind(*value),
            Param::OptInt(value) => query.bind(*value),
            Param::Bool(value) => query.bind(*value),
            Param::Text(value) => query.bind(*value),
            Param::OptText(value) => query.bind(*value),
            Param::Bytes(value) => query.bind(*value),
            Param::Ints(values) => query.bind(values),
            Param::OptInts(values) => query.bind(values),
            Param::Texts(values) => query.bind(values),
            Param::OptTexts(values) => query.bind(values),
            Param::BytesList(values) => query.bind(values),
        };
    }
    query
}

fn sqlite_query<'q>(
    sql: &'static str,
    params: &'q [Param<'q>],
) -> sqlx::query::Query<'q, Sqlite, sqlx::sqlite::SqliteArguments> {
    let mut query = sqlx::query(sql);
    for param in params {
        query = match param {
            Param::Int(value) => query.bind(*value),
            Param::OptInt(value) => query.bind(*value),
            Param::Bool(value) => query.bind(*value),
            Param::Text(value) => query.bind(*value),
            Param::OptText(value) => query.bind(*value),
            Param::Bytes(value) => query.bind(*value),
            // SQLite has no arrays: the text is read with `json_each`.
            Param::Ints(values) => query.bind(json(values)),
            Param::OptInts(values) => query.bind(json(values)),
            Param::Texts(values) => query.bind(json(values)),
            Param::OptTexts(values) => query.bind(json(values)),
            Param::BytesList(values) => query
                .bind(json(&values.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect::<Vec<_>>())),
        };
    }
    query
}

fn json(values: &impl serde::Serialize) -> String {
    serde_json::to_string(values).expect("numbers and texts always serialize")
}

impl Connection {
    async fn fetch(
        &mut self,
        sql: &'static str,
        params: &[Param<'_>],
        timeout: Duration,
    ) -> DbResult<Vec<Row>> {
        let result = tokio::time::timeout(timeout, async {
            match &mut self.inner {
                Inner::Postgres(connection) => {
                    let rows = postgres_query(sql, params).fetch_all(&mut **connection).await?;
                    Ok(rows.into_iter().map(Row::Postgres).collect())
                }
                Inner::Sqlite(connection) => {
                    let rows = sqlite_query(sql, params).fetch_all(&mut **connection).await?;
                    Ok(rows.into_iter().map(Row::Sqlite).collect())
                }
            }
        });
        let result = result.await;
        self.settle(result, timeout, DbError::from_sqlx)
    }

    async fn execute(
        &mut self,
        sql: &'static str,
        params: &[Param<'_>],
        timeout: Duration,
        classify: fn(sqlx::Error) -> DbError,
    ) -> DbResult<u64> {
        let result = tokio::time::timeout(timeout, async {
            match &mut self.inner {
                Inner::Postgres(connection) => {
                    Ok(postgres_query(sql, params).execute(&mut **connection).await?.rows_affected())
                }
                Inner::Sqlite(connection) => {
                    Ok(sqlite_query(sql, params).execute(&mut **connection).await?.rows_affected())
                }
            }
        });
        let result = result.await;
        self.settle(result, timeout, classify)
    }

    /// Anything but an ordinary answer of the database makes the connection unfit for the next borrower.
    fn settle<T>(
        &mut self,
        result: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>,
        timeout: Duration,
        classify: fn(sqlx::Error) -> DbError,
    ) -> DbResult<T> {
        let error = match result {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => sqlx::Error::Io(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("no answer within {} ms", timeout.as_millis()),
            )),
        };
        let answered = matches!(&error, sqlx::Error::Database(refusal)
            if !refusal.code().is_some_and(|code| code.len() == 5 && code.starts_with("57P")));
        if !answered {
            self.discard();
        }
        Err(classify(error))
    }

    fn discard(&mut self) {
        self.lost = true;
        match &mut self.inner {
            Inner::Postgres(connection) => connection.close_on_drop(),
            Inner::Sqlite(connection) => connection.close_on_drop(),
        }
    }
}

/// A transaction for writing. Finish it with [`Tx::commit`] or [`Tx::rollback`]; dropped unfinished, its connection
/// is closed, which rolls it back.
pub struct Tx {
    connection: Connection,
    statement_timeout: Duration,
    finished: bool,
}

impl Tx {
    /// The first for Postgres, the second for SQLite.
    pub fn pick<T>(&self, postgres: T, sqlite: T) -> T {
        if matches!(self.connection.inner, Inner::Postgres(_)) { postgres } else { sqlite }
    }

    /// Runs a query and returns its rows. Every error means that the transaction will not commit.
    pub async fn fetch(&mut self, sql: &'static str, params: &[Param<'_>]) -> DbResult<Vec<Row>> {
        self.connection.fetch(sql, params, self.statement_timeout).await
    }

    /// Runs a statement and returns how many rows it touched. Every error means that the transaction will not commit.
    pub async fn execute(&mut self, sql: &'static str, params: &[Param<'_>]) -> DbResult<u64> {
        self.connection.execute(sql, params, self.statement_timeout, DbError::from_sqlx).await
    }

    /// Commits. [`DbError::Unknown`] when no answer was understood: the caller must not assume either way.
    pub async fn commit(mut self) -> DbResult<()> {
        super::failpoint::hit("before_commit");
        self.connection.execute("commit", &[], self.statement_timeout, DbError::from_commit).await?;
        self.finished = true;
        super::failpoint::hit("after_commit");
        Ok(())
    }

    /// Gives everything up. An error is of no interest: the connection is closed and the server rolls back.
    pub async fn rollback(mut self) {
        let result =
            self.connection.execute("rollback", &[], self.statement_timeout, DbError::from_sqlx).await;
        self.finished = result.is_ok();
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if !self.finished {
            self.connection.discard();
        }
    }
}
