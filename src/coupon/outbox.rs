//! The outbox: events on their way from the ledger to the log, and the leases of those who carry them.
//!
//! Rows are written by the ledger's transactions ([`append`]); [`relay`](super::relay) reads them, sends them, marks
//! them. What must always hold: a row is found by *being unsent*, never by an id above the last one, so a
//! transaction that commits late is read late, not skipped; a mark made under a lost lease changes nothing; a row
//! behind a parked row of the same key is not read.

use super::{
    clock::UtcMicros,
    db::{Db, DbResult, Param, Row, Tx},
};

/// Number of lanes. Fixed: a row's lane is stored, so another number would split a user's rows over two lanes.
pub const LANES: i32 = 16;

/// An event as it is stored and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// The event's id.
    pub event_id: String,
    /// Hash of the key, 0..[`LANES`].
    pub lane: i64,
    /// Where it goes.
    pub topic: String,
    /// The record's key.
    pub key: String,
    /// The record's headers, a JSON object of texts.
    pub headers: String,
    /// The record's value.
    pub payload: Vec<u8>,
    /// When the event happened: the record's timestamp.
    pub created_at: UtcMicros,
}

/// A row read for sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsentRow {
    /// Its place in the outbox.
    pub id: i64,
    /// What is to be sent.
    pub row: OutboxRow,
}

/// A row the log refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedRow {
    /// Its place in the outbox.
    pub id: i64,
    /// The event's id.
    pub event_id: String,
    /// Where it was to go.
    pub topic: String,
    /// Its key: later rows of it wait.
    pub key: String,
    /// Since when.
    pub parked_at: UtcMicros,
    /// The log's words.
    pub reason: String,
    /// Rows of the same key waiting behind it.
    pub waiting: i64,
}

/// How much is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Rows not sent and not parked.
    pub unsent: i64,
    /// When the oldest of them happened.
    pub oldest_at: Option<UtcMicros>,
    /// When the oldest of those happened that do not wait behind a parked row.
    pub oldest_sendable_at: Option<UtcMicros>,
    /// Rows parked.
    pub parked: i64,
}

/// A lease of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The lane.
    pub lane: i64,
    /// Rises with every change of hands; marks carry it.
    pub token: i64,
}

/// Writes one event in the transaction of the row it tells of.
pub async fn append(tx: &mut Tx, row: &OutboxRow) -> DbResult<()> {
    let written = tx
        .execute(
            "insert into outbox (event_id, lane, topic, key, headers, payload, created_at)
             values ($1, $2, $3, $4, $5, $6, $7)",
            &[
                Param::Text(&row.event_id),
                Param::Int(row.lane),
                Param::Text(&row.topic),
                Param::Text(&row.key),
                Param::Text(&row.headers),
                Param::Bytes(&row.payload),
                Param::Int(row.created_at.micros()),
            ],
        )
        .await?;
    debug_assert_eq!(written, 1);
    Ok(())
}

/// The oldest unsent rows of these lanes, at most `max`, in the order they were written; those that wait behind a
/// parked row of their key are left out.
pub async fn read_unsent(db: &Db, lanes: &[i64], max: usize) -> DbResult<Vec<UnsentRow>> {
    let sql = db.pick(
        "select id, event_id, lane, topic, key, headers, payload, created_at from outbox
         where sent_at is null and parked_at is null and lane = any($1)
           and not exists (select 1 from outbox held
                           where held.parked_at is not null and held.key = outbox.key and held.id < outbox.id)
         order by id limit $2",
        "select id, event_id, lane, topic, key, headers, payload, created_at from outbox
         where sent_at is null and parked_at is null and lane in (select value from json_each($1))
           and not exists (select 1 from outbox held
                           where held.parked_at is not null and held.key = outbox.key and held.id < outbox.id)
         order by id limit $2",
    );
    let rows = db.read(sql, &[Param::Ints(lanes.to_vec()), Param::Int(limit(max))]).await?;
    rows.iter().map(unsent).collect()
}

fn unsent(row: &Row) -> DbResult<UnsentRow> {
    Ok(UnsentRow {
        id: row.int("id")?,
        row: OutboxRow {
            event_id: row.text("event_id")?,
            lane: row.int("lane")?,
            topic: row.text("topic")?,
            key: row.text("key")?,
            headers: row.text("headers")?,
            payload: row.bytes("payload")?,
            created_at: UtcMicros::clamped(row.int("created_at")?),
        },
    })
}

fn limit(max: usize) -> i64 {
    i64::try_from(max).unwrap_or(i64::MAX)
}

/// Marks rows as sent, those of lanes still held under these leases; returns how many. Rows of a lost lane stay
/// unsent, and the new holder sends them again.
pub async fn mark_sent(db: &Db, ids: &[i64], leases: &[Lease], now: UtcMicros) -> DbResult<u64> {
    let mut tx = db.begin().await?;
    let held = lock_held(&mut tx, db, leases).await?;
    let sql = db.pick(
        "update outbox set sent_at = $1 where id = any($2) and lane = any($3) and sent_at is null",
        "update outbox set sent_at = $1 where id in (select value from json_each($2))
           and lane in (select value from json_each($3)) and sent_at is null",
    );
    let marked =
        tx.execute(sql, &[Param::Int(now.micros()), Param::Ints(ids.to_vec()), Param::Ints(held)]).await?;
    tx.commit().await?;
    Ok(marked)
}

/// Deletes sent rows directly instead of marking them: one write less a row, nothing to look at afterwards.
pub async fn delete_acknowledged(db: &Db, ids: &[i64], leases: &[Lease]) -> DbResult<u64> {
    let mut tx = db.begin().await?;
    let held = lock_held(&mut tx, db, leases).await?;
    let sql = db.pick(
        "delete from outbox where id = any($1) and lane = any($2)",
        "delete from outbox where id in (select value from json_each($1)) and lane in (select value from json_each($2))",
    );
    let deleted = tx.execute(sql, &[Param::Ints(ids.to_vec()), Param::Ints(held)]).await?;
    tx.commit().await?;
    Ok(deleted)
}

/// The lanes among the leases that are still ours, locked against a change of hands until the transaction ends.
///
/// The transaction does not wait for the disk: a mark that a crash of the server forgets is an event sent twice.
async fn lock_held(tx: &mut Tx, db: &Db, leases: &[Lease]) -> DbResult<Vec<i64>> {
    let sql = db.pick(
        "select lane, token, set_config('synchronous_commit', 'off', true) from relay_lease
         where lane = any($1) order by lane for share",
        "select lane, token from relay_lease where lane in (select value from json_each($1)) order by lane",
    );
    let rows = tx.fetch(sql, &[Param::Ints(leases.iter().map(|lease| lease.lane).collect())]).await?;
    let mut held = Vec::with_capacity(rows.len());
    for row in &rows {
        let stored = Lease { lane: row.int("lane")?, token: row.int("token")? };
        if leases.contains(&stored) {
            held.push(stored.lane);
        }
    }
    Ok(held)
}

/// Deletes up to `max` rows sent before `before`; returns how many.
pub async fn delete_sent(db: &Db, before: UtcMicros, max: usize) -> DbResult<u64> {
    let mut tx = db.begin().await?;
    let deleted = tx
        .execute(
            "delete from outbox where id in (select id from outbox where sent_at < $1 order by sent_at limit $2)",
            &[Param::Int(before.micros()), Param::Int(limit(max))],
        )
        .await?;
    tx.commit().await?;
    Ok(deleted)
}

/// Sets a row aside that the log refuses for good. False when the lane is no longer ours.
pub async fn park(db: &Db, id: i64, lease: Lease, reason: &str, now: UtcMicros) -> DbResult<bool> {
    let mut tx = db.begin().await?;
    let held = lock_held(&mut tx, db, &[lease]).await?;
    if held.is_empty() {
        tx.rollback().await;
        return Ok(false);
    }
    let parked = tx
        .execute(
            "update outbox set parked_at = $2, park_reason = $3 where id = $1 and sent_at is null",
            &[Param::Int(id), Param::Int(now.micros()), Param::Text(reason)],
        )
        .await?;
    tx.commit().await?;
    Ok(parked == 1)
}

/// The parked rows, oldest first.
pub async fn parked(db: &Db) -> DbResult<Vec<ParkedRow>> {
    let rows = db
        .read(
            "select id, event_id, topic, key, parked_at, coalesce(park_reason, '') as reason,
                    (select count(*) from outbox later
                     where later.key = outbox.key and later.id > outbox.id and later.sent_at is null) as waiting
             from outbox where parked_at is not null order by id",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(ParkedRow {
                id: row.int("id")?,
                event_id: row.text("event_id")?,
                topic: row.text("topic")?,
                key: row.text("key")?,
                parked_at: UtcMicros::clamped(row.int("parked_at")?),
                reason: row.text("reason")?,
                waiting: row.int("waiting")?,
            })
        })
        .collect()
}

/// Lets a parked row be tried again, and what waits behind it after it. False when it was not parked.
pub async fn resume(db: &Db, id: i64) -> DbResult<bool> {
    let mut tx = db.begin().await?;
    let resumed = tx
        .execute(
            "update outbox set parked_at = null, park_reason = null where id = $1 and parked_at is not null",
            &[Param::Int(id)],
        )
        .await?;
    tx.commit().await?;
    Ok(resumed == 1)
}

/// Counts what is on its way.
pub async fn backlog(db: &Db) -> DbResult<Backlog> {
    let rows = db
        .read(
            "select (select count(*) from outbox where sent_at is null and parked_at is null) as unsent,
                    (select created_at from outbox where sent_at is null and parked_at is null order by id limit 1)
                        as oldest_at,
                    (select created_at from outbox where sent_at is null and parked_at is null
                        and not exists (select 1 from outbox held where held.parked_at is not null
                            and held.key = outbox.key and held.id < outbox.id) order by id limit 1)
                        as oldest_sendable_at,
                    (select count(*) from outbox where parked_at is not null) as parked",
            &[],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(Backlog::default()) };
    Ok(Backlog {
        unsent: row.int("unsent")?,
        oldest_at: row.opt_int("oldest_at")?.map(UtcMicros::clamped),
        oldest_sendable_at: row.opt_int("oldest_sendable_at")?.map(UtcMicros::clamped),
        parked: row.int("parked")?,
    })
}

/// Takes or keeps every lane that is free, expired or already this holder's, until `now + ttl_micros`. The token of
/// a lane that changes hands rises. Times are the database's own where it has a clock of its own, so that two
/// relays with different clocks agree on what has expired.
pub async fn acquire_leases(db: &Db, holder: &str, ttl_micros: i64, now: UtcMicros) -> DbResult<Vec<Lease>> {
    let mut tx = db.begin().await?;
    let now = database_now(&mut tx, db, now).await?;
    let mut leases = Vec::new();
    for lane in 0..i64::from(LANES) {
        let rows = tx
            .fetch(
                "insert into relay_lease (lane, holder, token, expires_at) values ($1, $2, 1, $3)
                 on conflict (lane) do update set
                     token = case when relay_lease.holder = excluded.holder
                                  then relay_lease.token else relay_lease.token + 1 end,
                     holder = excluded.holder,
                     expires_at = excluded.expires_at
                 where relay_lease.holder = excluded.holder or relay_lease.expires_at <= $4
                 returning lane, token",
                &[Param::Int(lane), Param::Text(holder), Param::Int(now + ttl_micros), Param::Int(now)],
            )
            .await?;
        if let Some(row) = rows.first() {
            leases.push(Lease { lane: row.int("lane")?, token: row.int("token")? });
        }
    }
    tx.commit().await?;
    Ok(leases)
}

/// Gives the holder's lanes back at once, so that another relay need not wait for them to expire.
pub async fn release_leases(db: &Db, holder: &str) -> DbResult<()> {
    let mut tx = db.begin().await?;
    tx.execute("update relay_lease set expires_at = 0 where holder = $1", &[Param::Text(holder)]).await?;
    tx.commit().await
}

async fn database_now(tx: &mut Tx, db: &Db, now: UtcMicros) -> DbResult<i64> {
    if !db.is_postgres() {
        return Ok(now.micros());
    }
    let rows =
        tx.fetch("select (extract(epoch from clock_timestamp()) * 1000000)::bigint as now", &[]).await?;
    rows.first().map_or(Ok(now.micros()), |row| row.int("now"))
}
