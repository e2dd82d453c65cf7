//! [`SqlTable`]: one store's table in the state file.
//!
//! Key columns first, `without rowid`, no second index (it would double the cost of a save):
//!
//! | shape | primary key |
//! |---|---|
//! | key-value | key |
//! | segmented (windows, sessions) | segment, key, time, number |
//! | versioned | key, valid from |
//!
//! With the segment in front, new rows of a window append near the end and expired segments leave as one contiguous
//! range, while the rows of one key within a segment stay together. For tumbling windows, whose retention is little
//! more than their size, a segment holds one or two windows, so this is (start, key).
//!
//! Keys are stored as bytes, in whose order stores are scanned. A value is stored in the columns its serde names, else in
//! one column: numbers and text as themselves, all else as the bytes of its serde.

use std::{ops::Bound, sync::Arc};

use rusqlite::{
    CachedStatement, Connection, OptionalExtension, Row, ToSql, Transaction, params_from_iter,
    types::{ToSqlOutput, Value, ValueRef},
};

use super::Shared;
use crate::streams::{
    error::{ProcessingError, Result, StreamsError},
    record::{AnyValue, ByteKey, Timestamp},
    serdes::{AnySerde, ColumnSerde, SqlValue},
    state::{StoreBuilder, ValueAndTimestamp},
};

/// Key columns of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::streams::state) enum TableShape {
    KeyValue,
    /// Window rows; the size is for the view.
    Window {
        size_ms: i64,
    },
    Session,
    Versioned,
}

/// A row on its way to the table. What its shape does not have is 0.
pub(in crate::streams::state) struct SqlRow {
    pub(in crate::streams::state) segment: i64,
    pub(in crate::streams::state) key: ByteKey,
    pub(in crate::streams::state) time: Timestamp,
    pub(in crate::streams::state) sub: i64,
    /// `None`: the row is deleted; in a versioned table it is a tombstone.
    pub(in crate::streams::state) value: Option<ValueAndTimestamp>,
}

/// What a store remembers besides its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::streams::state) struct StoreMeta {
    /// Observed stream time.
    pub(in crate::streams::state) observed: Timestamp,
    /// Sequence number of the last duplicate.
    pub(in crate::streams::state) seq: u32,
    /// Rows, approximate.
    pub(in crate::streams::state) rows: u64,
}

/// The changes of one store.
pub(in crate::streams::state) struct TableSnapshot {
    pub(in crate::streams::state) rows: Vec<SqlRow>,
    /// Versioned: keys whose versions are replaced by those in `rows`.
    pub(in crate::streams::state) replaced: Vec<ByteKey>,
    /// Segmented: segments before this one are gone.
    pub(in crate::streams::state) first_segment: Option<i64>,
    pub(in crate::streams::state) meta: StoreMeta,
}

/// One store's table.
pub(in crate::streams::state) struct SqlTable {
    shared: Arc<Shared>,
    name: String,
    shape: TableShape,
    value_serde: AnySerde,
    value_columns: Option<Arc<dyn ColumnSerde>>,
    key_serde: AnySerde,
    key_columns: Option<Arc<dyn ColumnSerde>>,
    /// Which of the key's natural columns are stored (a value column of the same name wins).
    key_column_places: Vec<usize>,
    value_width: usize,
    statements: Statements,
}

/// SQL text, made once.
struct Statements {
    upsert: String,
    delete: String,
    delete_before: String,
    delete_key: String,
    by_key: String,
    by_segment_key: String,
    by_segment: String,
    by_segment_times: String,
    has_segment: String,
    /// Select list and table, to be completed with a condition.
    select: String,
    segments: String,
    any: String,
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl SqlTable {
    /// Opens the store's table, creating it and its view when new.
    pub(in crate::streams::state) fn open(
        shared: Arc<Shared>,
        builder: &StoreBuilder,
        shape: TableShape,
    ) -> Result<Arc<Self>> {
        let value_columns = builder.value_serde.columns();
        let key_columns = builder.key_serde.columns();
        let natural: Vec<(String, &'static str)> = match &value_columns {
            Some(columns) => columns.columns(),
            None => vec![("value".to_owned(), "")],
        };
        let key_names = key_columns.as_ref().map(|columns| columns.columns()).unwrap_or_default();
        let taken = |name: &str| natural.iter().any(|(column, _)| column.eq_ignore_ascii_case(name));
        let key_column_places: Vec<usize> =
            (0..key_names.len()).filter(|place| !taken(&key_names[*place].0)).collect();
        let key_natural: Vec<_> = key_column_places.iter().map(|place| key_names[*place].clone()).collect();

        let name = &builder.name;
        let table = quoted(&format!("{name}__rows"));
        let (key, extra): (&[&str], &[&str]) = match shape {
            TableShape::KeyValue => (&["_key"], &[]),
            TableShape::Window { .. } | TableShape::Session => {
                (&["_segment", "_key", "_time", "_number"], &[])
            }
            TableShape::Versioned => (&["_key", "_time"], &["_number"]),
        };
        let typed = |column: &str| {
            let sql_type = if column == "_key" { "blob" } else { "integer" };
            format!("{column} {sql_type} not null")
        };
        let values: Vec<String> = natural.iter().map(|(name, _)| quoted(name)).collect();
        let mut columns: Vec<String> = key.iter().chain(extra).map(|column| typed(column)).collect();
        columns.push("_timestamp integer not null".to_owned());
        for (column, sql_type) in natural.iter().chain(&key_natural) {
            columns.push(format!("{} {sql_type}", quoted(column)));
        }
        let create = format!(
            "create table if not exists {table} ({}, primary key ({})) without rowid;\n{}",
            columns.join(", "),
            key.join(", "),
            view(name, &table, shape, &natural, &key_natural)
        );

        let written: Vec<String> = key
            .iter()
            .chain(extra)
            .map(|column| (*column).to_owned())
            .chain(["_timestamp".to_owned()])
            .chain(natural.iter().chain(&key_natural).map(|(name, _)| quoted(name)))
            .collect();
        let places = vec!["?"; written.len()].join(", ");
        let updates: Vec<String> =
            written[key.len()..].iter().map(|column| format!("{column} = excluded.{column}")).collect();
        let condition: Vec<String> = key.iter().map(|column| format!("{column} = ?")).collect();
        let listed = |wanted: &str| {
            if written.iter().any(|column| column == wanted) { wanted.to_owned() } else { "0".to_owned() }
        };
        let select = format!(
            "select _key, {}, {}, _timestamp, {} from {table}",
            listed("_time"),
            listed("_number"),
            values.join(", ")
        );
        let statements = Statements {
            upsert: format!(
                "insert into {table} ({}) values ({places}) on conflict do update set {}",
                written.join(", "),
                updates.join(", ")
            ),
            delete: format!("delete from {table} where {}", condition.join(" and ")),
            delete_before: format!("delete from {table} where _segment < ?"),
            delete_key: format!("delete from {table} where _key = ?"),
            by_key: format!("{select} where _key = ?"),
            by_segment_key: format!("{select} where _segment = ? and _key = ?"),
            by_segment: format!("{select} where _segment = ?"),
            by_segment_times: format!("{select} where _segment = ? and _time between ? and ?"),
            has_segment: format!("select exists (select 1 from {table} where _segment = ?)"),
            segments: format!("select min(_segment) from {table} where _segment > ?"),
            any: format!("select exists (select 1 from {table})"),
            select,
        };
        let broken = |error: rusqlite::Error| shared.broken("build a table in", &error);
        {
            let writer = shared.write();
            let mut shape = format!("{shape:?} {:?} {}", builder.kind, columns.join(", "));
            if let Some(interval) = builder.segment_interval {
                shape.push_str(&format!(" segments of {interval:?}"));
            }
            let query = "select shape from sluice_store where name = ?";
            let found: Option<String> =
                writer.query_row(query, [name], |row| row.get(0)).optional().map_err(broken)?;
            if found.is_some_and(|found| found != shape) {
                shared.forget(&writer, name)?;
            }
            writer.execute_batch(&create).map_err(broken)?;
            let register = "insert into sluice_store values (?, ?, -1, 0, 0) on conflict do nothing";
            writer.execute(register, (name, shape)).map_err(broken)?;
        }
        Ok(Arc::new(Self {
            name: name.clone(),
            shape,
            value_serde: builder.value_serde.clone(),
            value_width: natural.len(),
            value_columns,
            key_serde: builder.key_serde.clone(),
            key_columns,
            key_column_places,
            statements,
            shared,
        }))
    }

    pub(in crate::streams::state) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    // ---- reading -------------------------------------------------------------------------------------------------

    /// Whether the table has any row.
    pub(in crate::streams::state) fn is_empty(&self) -> Result<bool> {
        let any = self.run(|reader| {
            reader.prepare_cached(&self.statements.any)?.query_row([], |row| row.get::<_, bool>(0))
        })?;
        Ok(!any)
    }

    /// Clock and counter as of the last save.
    pub(in crate::streams::state) fn meta(&self) -> Result<StoreMeta> {
        let query = "select observed, seq, row_count from sluice_store where name = ?";
        self.run(|reader| {
            reader.prepare_cached(query)?.query_row([&self.name], |row| {
                Ok(StoreMeta {
                    observed: row.get(0)?,
                    seq: row.get(1)?,
                    rows: row.get::<_, i64>(2)?.max(0) as u64,
                })
            })
        })
    }

    /// Segments that have rows, ascending.
    pub(in crate::streams::state) fn segments(&self) -> Result<Vec<i64>> {
        self.run(|reader| {
            let mut query = reader.prepare_cached(&self.statements.segments)?;
            let mut found = Vec::new();
            let mut last = i64::MIN;
            // Steps from one segment to the next over the primary key; never reads the rows between.
            while let Some(next) = query.query_row([last], |row| row.get::<_, Option<i64>>(0))? {
                found.push(next);
                last = next;
            }
            Ok(found)
        })
    }

    /// The row of a key (key-value).
    pub(in crate::streams::state) fn get(&self, key: &[u8]) -> Result<Option<ValueAndTimestamp>> {
        let rows = self.rows(&self.statements.by_key, &[&key])?;
        Ok(rows.into_iter().next().and_then(|row| row.value))
    }

    /// Rows of a key range, ascending (key-value).
    pub(in crate::streams::state) fn range(
        &self,
        range: &(Bound<ByteKey>, Bound<ByteKey>),
    ) -> Result<Vec<SqlRow>> {
        let mut sql = format!("{} where 1", self.statements.select);
        let mut parameters: Vec<&[u8]> = Vec::new();
        for (bound, inclusive, exclusive) in [(&range.0, ">=", ">"), (&range.1, "<=", "<")] {
            let (operator, key) = match bound {
                Bound::Included(key) => (inclusive, key),
                Bound::Excluded(key) => (exclusive, key),
                Bound::Unbounded => continue,
            };
            sql.push_str(&format!(" and _key {operator} ?"));
            parameters.push(key.as_slice());
        }
        sql.push_str(" order by _key");
        let parameters: Vec<&dyn ToSql> = parameters.iter().map(|key| key as &dyn ToSql).collect();
        self.rows(&sql, &parameters)
    }

    /// Rows of a key in a segment, by time (segmented).
    pub(in crate::streams::state) fn of_segment_key(&self, segment: i64, key: &[u8]) -> Result<Vec<SqlRow>> {
        self.rows(&self.statements.by_segment_key, &[&segment, &key])
    }

    /// Rows of a segment, by key and time (segmented).
    pub(in crate::streams::state) fn of_segment(&self, segment: i64) -> Result<Vec<SqlRow>> {
        self.rows(&self.statements.by_segment, &[&segment])
    }

    /// Rows of a segment with times in between, by key and time (segmented). Reads the whole segment for it.
    pub(in crate::streams::state) fn of_segment_times(
        &self,
        segment: i64,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<SqlRow>> {
        self.rows(&self.statements.by_segment_times, &[&segment, &from, &to])
    }

    /// Whether a segment has any row (segmented).
    pub(in crate::streams::state) fn has_segment(&self, segment: i64) -> Result<bool> {
        self.run(|reader| {
            let mut query = reader.prepare_cached(&self.statements.has_segment)?;
            query.query_row([segment], |row| row.get::<_, bool>(0))
        })
    }

    /// Versions of a key, oldest first (versioned).
    pub(in crate::streams::state) fn versions(&self, key: &[u8]) -> Result<Vec<SqlRow>> {
        self.rows(&self.statements.by_key, &[&key])
    }

    /// Drops versions that ended before `oldest` (versioned). They can be asked for by nobody, so no offset moves.
    pub(in crate::streams::state) fn forget_versions(&self, oldest: Timestamp) -> Result<()> {
        let table = quoted(&format!("{}__rows", self.name));
        let sql = format!(
            "delete from {table} where exists (select 1 from {table} as newer where newer._key = {table}._key \
             and newer._time > {table}._time and newer._time < ?)"
        );
        let deleted = self.shared.write().execute(&sql, [oldest]);
        deleted.map(drop).map_err(|error| self.shared.broken("tidy", &error))
    }

    fn run<R>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<R>) -> Result<R> {
        read(&self.shared.read()).map_err(|error| self.shared.broken("read", &error))
    }

    fn rows(&self, sql: &str, parameters: &[&dyn ToSql]) -> Result<Vec<SqlRow>> {
        let reader = self.shared.read();
        let broken = |error: rusqlite::Error| self.shared.broken("read", &error);
        let mut query = reader.prepare_cached(sql).map_err(broken)?;
        let mut rows = query.query(parameters).map_err(broken)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(broken)? {
            let key = ByteKey::new(row.get_ref(0).and_then(|key| Ok(key.as_blob()?)).map_err(broken)?);
            let (time, sub, timestamp) =
                (|| Ok((row.get(1)?, row.get(2)?, row.get(3)?)))().map_err(broken)?;
            let value = if self.shape == TableShape::Versioned && sub == TOMBSTONE {
                None
            } else {
                let value = self.decode(row).map_err(|error| {
                    self.shared.unreadable(format!("a row of store {} cannot be read: {error}", self.name))
                })?;
                Some(ValueAndTimestamp { value, timestamp })
            };
            found.push(SqlRow { segment: 0, key, time, sub, value });
        }
        Ok(found)
    }

    fn decode(&self, row: &Row<'_>) -> Result<AnyValue, ProcessingError> {
        let column = |place: usize| {
            row.get_ref(4 + place).map_err(|error| ProcessingError::new("StateFile", error.to_string()))
        };
        let Some(columns) = &self.value_columns else {
            return match column(0)? {
                ValueRef::Integer(number) => Ok(Arc::new(number)),
                ValueRef::Real(number) => Ok(Arc::new(number)),
                ValueRef::Text(text) => match std::str::from_utf8(text) {
                    Ok(text) => Ok(Arc::new(text.to_owned())),
                    Err(error) => Err(ProcessingError::new("StateFile", error.to_string())),
                },
                ValueRef::Blob(bytes) => self.value_serde.deserialize(bytes),
                ValueRef::Null => Err(ProcessingError::new("StateFile", "its value is null")),
            };
        };
        let values = (0..self.value_width)
            .map(|place| {
                Ok(match column(place)? {
                    ValueRef::Null => SqlValue::Null,
                    ValueRef::Integer(number) => SqlValue::Integer(number),
                    ValueRef::Real(number) => SqlValue::Real(number),
                    ValueRef::Text(text) => SqlValue::Text(String::from_utf8_lossy(text).into_owned()),
                    ValueRef::Blob(bytes) => SqlValue::Blob(bytes.to_vec()),
                })
            })
            .collect::<Result<Vec<_>, ProcessingError>>()?;
        columns.from_columns(&values)
    }

    // ---- writing -------------------------------------------------------------------------------------------------

    /// Writes the changes, sorted by key: row order decides what a save costs. The outer error is SQLite's, the inner
    /// one a value that cannot be encoded.
    pub(super) fn write(
        &self,
        transaction: &Transaction<'_>,
        mut snapshot: TableSnapshot,
    ) -> rusqlite::Result<Result<()>> {
        if let Some(first) = snapshot.first_segment {
            transaction.prepare_cached(&self.statements.delete_before)?.execute([first])?;
        }
        let mut delete_key = transaction.prepare_cached(&self.statements.delete_key)?;
        for key in &snapshot.replaced {
            delete_key.execute([key.as_slice()])?;
        }
        snapshot.rows.sort_unstable_by(|a, b| {
            (a.segment, &a.key, a.time, a.sub).cmp(&(b.segment, &b.key, b.time, b.sub))
        });
        let mut upsert = transaction.prepare_cached(&self.statements.upsert)?;
        let mut delete = transaction.prepare_cached(&self.statements.delete)?;
        for row in &snapshot.rows {
            match (&row.value, self.shape) {
                (None, TableShape::KeyValue) => drop(delete.execute([row.key.as_slice()])?),
                (None, TableShape::Window { .. } | TableShape::Session) => {
                    delete.execute((row.segment, row.key.as_slice(), row.time, row.sub))?;
                }
                (value, _) => match self.values(row, value.as_ref()) {
                    Ok(values) => self.put(&mut upsert, row, values)?,
                    Err(error) => {
                        return Ok(Err(StreamsError::fatal(format!(
                            "store {}: a value cannot be saved: {error}",
                            self.name
                        ))));
                    }
                },
            }
        }
        let StoreMeta { observed, seq, rows } = snapshot.meta;
        let update = "update sluice_store set observed = ?, seq = ?, row_count = ? where name = ?";
        transaction.prepare_cached(update)?.execute((observed, seq, rows as i64, &self.name))?;
        Ok(Ok(()))
    }

    fn put(
        &self,
        upsert: &mut CachedStatement<'_>,
        row: &SqlRow,
        values: Vec<Column>,
    ) -> rusqlite::Result<()> {
        let timestamp = row.value.as_ref().map_or(row.time, |value| value.timestamp);
        let integer = |number: i64| Column(Value::Integer(number));
        let key = Key(row.key.as_slice());
        let (segment, time, sub, timestamp) =
            (integer(row.segment), integer(row.time), integer(row.sub), integer(timestamp));
        let head: &[&dyn ToSql] = match self.shape {
            TableShape::KeyValue => &[&key, &timestamp],
            TableShape::Window { .. } | TableShape::Session => &[&segment, &key, &time, &sub, &timestamp],
            TableShape::Versioned => &[&key, &time, &sub, &timestamp],
        };
        let values = values.iter().map(|value| value as &dyn ToSql);
        upsert.execute(params_from_iter(head.iter().copied().chain(values))).map(drop)
    }

    fn values(
        &self,
        row: &SqlRow,
        value: Option<&ValueAndTimestamp>,
    ) -> Result<Vec<Column>, ProcessingError> {
        let mut values: Vec<Column> = match (value, &self.value_columns) {
            (None, _) => vec![Column(Value::Null); self.value_width],
            (Some(value), Some(columns)) => {
                columns.to_columns(&value.value).into_iter().map(Column::from).collect()
            }
            (Some(value), None) => vec![Column(scalar(&value.value, &self.value_serde)?)],
        };
        if let Some(columns) = &self.key_columns
            && !self.key_column_places.is_empty()
        {
            let mut key = columns.to_columns(&self.key_serde.deserialize(&row.key)?);
            values.extend(
                self.key_column_places
                    .iter()
                    .map(|place| std::mem::replace(&mut key[*place], SqlValue::Null).into()),
            );
        }
        Ok(values)
    }
}

/// Marks a tombstone in the number column of a versioned table.
pub(in crate::streams::state) const TOMBSTONE: i64 = 1;

#[derive(Clone)]
struct Column(Value);

impl From<SqlValue> for Column {
    fn from(value: SqlValue) -> Self {
        Self(match value {
            SqlValue::Null => Value::Null,
            SqlValue::Integer(number) => Value::Integer(number),
            SqlValue::Real(number) => Value::Real(number),
            SqlValue::Text(text) => Value::Text(text),
            SqlValue::Blob(bytes) => Value::Blob(bytes),
        })
    }
}

impl ToSql for Column {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

struct Key<'a>(&'a [u8]);

impl ToSql for Key<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(self.0)))
    }
}

/// One value in one column: numbers and text as themselves, so that a person can read them. What the column's SQL type
/// is says how to read it back, so only types with exactly one reading are stored so.
fn scalar(value: &AnyValue, serde: &AnySerde) -> Result<Value, ProcessingError> {
    if let Some(number) = value.downcast_ref::<i64>() {
        return Ok(Value::Integer(*number));
    }
    if let Some(number) = value.downcast_ref::<f64>()
        && !number.is_nan()
    {
        return Ok(Value::Real(*number));
    }
    if let Some(text) = value.downcast_ref::<String>() {
        return Ok(Value::Text(text.clone()));
    }
    serde.to_bytes(value).map(Value::Blob)
}

/// The view named as the store: readable key, window bounds, value, timestamp.
fn view(
    name: &str,
    table: &str,
    shape: TableShape,
    natural: &[(String, &'static str)],
    key_natural: &[(String, &'static str)],
) -> String {
    // Bytes that hold no NUL are shown as text (they are, in all serdes of text and JSON), others in hex.
    let readable = |column: &str| {
        format!(
            "iif(typeof({column}) <> 'blob', {column}, iif(instr({column}, x'00') = 0, cast({column} as text), hex({column})))"
        )
    };
    let mut columns: Vec<(String, String)> = Vec::new();
    if key_natural.is_empty() {
        columns.push((readable("_key"), "key".to_owned()));
    }
    for (column, _) in key_natural {
        columns.push((quoted(column), column.clone()));
    }
    match shape {
        TableShape::KeyValue => {}
        TableShape::Window { size_ms } => {
            columns.push(("_time".to_owned(), "window_start".to_owned()));
            columns.push((format!("_time + {size_ms}"), "window_end".to_owned()));
        }
        TableShape::Session => {
            columns.push(("_number".to_owned(), "session_start".to_owned()));
            columns.push(("_time".to_owned(), "session_end".to_owned()));
        }
        TableShape::Versioned => columns.push(("_time".to_owned(), "valid_from".to_owned())),
    }
    for (column, sql_type) in natural {
        let shown = if sql_type.is_empty() { readable(&quoted(column)) } else { quoted(column) };
        columns.push((shown, column.clone()));
    }
    columns.push(("_timestamp".to_owned(), "timestamp".to_owned()));
    // A column of the value keeps its name; what would collide with it is left out.
    let taken = |alias: &str| natural.iter().any(|(column, _)| column.eq_ignore_ascii_case(alias));
    let listed: Vec<String> = columns
        .iter()
        .filter(|(expression, alias)| {
            !taken(alias) || natural.iter().any(|(column, _)| expression.contains(&quoted(column)))
        })
        .map(|(expression, alias)| format!("{expression} as {}", quoted(alias)))
        .collect();
    format!("create view if not exists {} as select {} from {table};", quoted(name), listed.join(", "))
}
