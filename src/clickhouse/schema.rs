//! The server's information about itself and its tables.

use std::time::{SystemTime, UNIX_EPOCH};

use clickhouse::Row;
use serde::Deserialize;

use super::connection::Connection;
use super::error::RequestError;
use super::quoting;

/// The server.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// Its version, e.g. `26.7.2.1`.
    pub version: String,
    /// How far its clock is ahead of this machine's, in microseconds. Langfuse's rows carry the time
    /// of its servers; this machine's clock may be wrong.
    pub clock_ahead: i64,
    /// Bytes of memory that the server may use, if the user may see that.
    pub memory: Option<u64>,
    /// Bytes of memory that one statement of the user may use, if there is a limit.
    pub statement_memory: Option<u64>,
    /// Threads that one statement of the user may use: those of the machine unless a profile says
    /// otherwise.
    pub threads: Option<u64>,
}

#[derive(Row, Deserialize)]
struct Bytes {
    bytes: u64,
}

#[derive(Row, Deserialize)]
struct VersionAndTime {
    version: String,
    time: i64,
}

/// Microseconds since 1970, by this machine's clock.
pub(crate) fn now_in_microseconds() -> i64 {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX)
}

/// A column, from `system.columns`.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct TableColumn {
    /// Its name.
    pub name: String,
    /// Its type, as ClickHouse spells it.
    pub data_type: String,
    /// `""`, `DEFAULT`, `MATERIALIZED`, `ALIAS` or `EPHEMERAL`.
    pub default_kind: String,
}

impl TableColumn {
    /// Whether an insert may name the column.
    pub fn is_insertable(&self) -> bool {
        !matches!(self.default_kind.as_str(), "MATERIALIZED" | "ALIAS")
    }
}

/// A table.
#[derive(Debug, Clone)]
pub struct TableInfo {
    /// Its database.
    pub database: String,
    /// Its name.
    pub name: String,
    /// Its UUID: a table that was dropped and created again has a new one.
    pub uuid: String,
    /// E.g. `ReplacingMergeTree` or `ReplicatedReplacingMergeTree`.
    pub engine: String,
    /// The partition key expression.
    pub partition_key: String,
    /// The primary key expressions, separated by commas.
    pub primary_key: String,
    /// Whether materialized views read from it.
    pub has_views: bool,
    /// Whether each row keeps the number of the block it was inserted in
    /// (`enable_block_number_column`).
    pub keeps_block_numbers: bool,
    /// The engine with all clauses: `MergeTree PARTITION BY … ORDER BY … TTL …`.
    pub engine_full: String,
    /// Its columns in order.
    pub columns: Vec<TableColumn>,
}

impl TableInfo {
    /// The column with this name.
    pub fn column(&self, name: &str) -> Option<&TableColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether the engine keeps only the latest of several versions of a row.
    pub fn is_replacing(&self) -> bool {
        self.engine.contains("ReplacingMergeTree")
    }

    /// `database.table` for SQL.
    pub fn qualified_name(&self) -> String {
        quoting::qualified(&self.database, &self.name)
    }
}

/// The size of one partition of a table.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct PartitionSize {
    /// Its id: `YYYYMM` for a table partitioned by month.
    pub partition_id: String,
    /// Rows in its parts, including versions that are not merged yet.
    pub rows: u64,
    /// Number of parts.
    pub parts: u64,
}

/// True for parts that hold only lightweight updates, not rows.
const IS_PATCH: &str = "startsWith(partition_id, 'patch-')";

/// The parts of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Row, Deserialize)]
pub struct Parts {
    /// Their rows.
    pub rows: u64,
    /// A hash of their names.
    names: u64,
}

/// How far a partition's inserts and mutations have come. A merge changes none of it, unless a number is missing
/// between its parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Row, Deserialize)]
pub(crate) struct PartitionState {
    /// One more than the highest block number: an insert increases it. 0 if there is no part.
    pub newest: u64,
    /// How many block numbers the parts cover: a replica may get a lower one later than a higher one.
    pub covered: u64,
    /// The last mutation in any part: a `DELETE` increases it.
    pub mutation: u64,
}

impl PartitionState {
    /// Whether nothing has been added or changed since `earlier`. A replica may lag behind.
    pub(crate) fn is_within(self, earlier: Self) -> bool {
        self.newest <= earlier.newest
            && self.covered <= earlier.covered
            && self.mutation <= earlier.mutation
    }
}

#[derive(Row, Deserialize)]
struct TableRow {
    uuid: String,
    engine: String,
    partition_key: String,
    primary_key: String,
    views: u64,
    keeps_block_numbers: u8,
    engine_full: String,
}

#[derive(Row, Deserialize)]
struct Count {
    count: u64,
}

#[derive(Row, Deserialize)]
struct Granted {
    #[serde(rename = "result")]
    granted: u8,
}

impl Connection {
    /// Whether the user has a right on a table. True if the server cannot tell; it then complains when
    /// the right is needed.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub(crate) async fn may(&self, right: &str, table: &TableInfo) -> Result<bool, RequestError> {
        let question = format!("CHECK GRANT {right} ON {}", table.qualified_name());
        match self.rows::<Granted>(&question).await {
            Err(RequestError::Exception { .. }) => Ok(true),
            granted => Ok(granted?.iter().all(|row| row.granted != 0)),
        }
    }

    /// The server's version, clock and memory limits.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn server_info(&self) -> Result<ServerInfo, RequestError> {
        let rows = self
            .rows::<VersionAndTime>(
                "SELECT version() AS version, toUnixTimestamp64Micro(now64(6)) AS time",
            )
            .await?;
        let now = now_in_microseconds();
        let server = rows.into_iter().next();
        let server = server.ok_or_else(|| {
            RequestError::Unexpected("SELECT version() returned no row".to_owned())
        })?;
        Ok(ServerInfo {
            version: server.version,
            clock_ahead: server.time - now,
            memory: self
                .bytes(
                    "SELECT toUInt64OrZero(value) AS bytes FROM system.server_settings \
                     WHERE name = 'max_server_memory_usage'",
                )
                .await,
            statement_memory: self
                .bytes("SELECT toUInt64(getSetting('max_memory_usage')) AS bytes")
                .await,
            threads: self
                .bytes("SELECT toUInt64(getSetting('max_threads')) AS bytes")
                .await,
        })
    }

    /// A number, mostly of bytes, if it is not zero and the user may see it.
    async fn bytes(&self, sql: &str) -> Option<u64> {
        let rows = self.rows::<Bytes>(sql).await.ok()?;
        rows.first().map(|row| row.bytes).filter(|&bytes| bytes > 0)
    }

    /// Whether a database exists and the user may see it.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn database_exists(&self, database: &str) -> Result<bool, RequestError> {
        let sql = format!(
            "SELECT count() AS count FROM system.databases WHERE name = {}",
            quoting::string(database)
        );
        Ok(self
            .rows::<Count>(&sql)
            .await?
            .iter()
            .any(|row| row.count > 0))
    }

    /// A table and its columns, or `None` if there is no such table.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn table(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<TableInfo>, RequestError> {
        let condition = format!(
            "database = {} AND name = {}",
            quoting::string(database),
            quoting::string(name)
        );
        let tables = self
            .rows::<TableRow>(&format!(
                "SELECT toString(uuid) AS uuid, engine, partition_key, primary_key, \
                 length(dependencies_table) AS views, \
                 toUInt8(position(engine_full, 'enable_block_number_column = 1') > 0) \
                 AS keeps_block_numbers, engine_full FROM system.tables WHERE {condition}"
            ))
            .await?;
        let Some(table) = tables.into_iter().next() else {
            return Ok(None);
        };
        let columns = self
            .rows::<TableColumn>(&format!(
                "SELECT name, type AS data_type, default_kind FROM system.columns \
                 WHERE database = {} AND table = {} ORDER BY position",
                quoting::string(database),
                quoting::string(name)
            ))
            .await?;
        Ok(Some(TableInfo {
            database: database.to_owned(),
            name: name.to_owned(),
            uuid: table.uuid,
            engine: table.engine,
            partition_key: table.partition_key,
            primary_key: table.primary_key,
            has_views: table.views > 0,
            keeps_block_numbers: table.keeps_block_numbers != 0,
            engine_full: table.engine_full,
            columns,
        }))
    }

    /// Like [`Connection::table`]; for a Distributed table, the one behind it on this server.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub(crate) async fn local_table(
        &self,
        database: &str,
        name: &str,
    ) -> Result<Option<TableInfo>, RequestError> {
        let table = self.table(database, name).await?;
        match table.as_ref().and_then(TableInfo::behind) {
            Some((database, name)) => self.table(&database, &name).await,
            None => Ok(table),
        }
    }

    /// Whether the user may see any of the views that read a table.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn sees_views_of(&self, table: &TableInfo) -> Result<bool, RequestError> {
        let seen = format!(
            "SELECT count() AS count FROM system.tables WHERE (database, name) IN \
             (SELECT arrayJoin(arrayZip(dependencies_database, dependencies_table)) \
             FROM system.tables WHERE database = {} AND name = {})",
            quoting::string(&table.database),
            quoting::string(&table.name)
        );
        let seen = self.rows::<Count>(&seen).await?;
        Ok(seen.iter().any(|row| row.count > 0))
    }

    /// The table that fills this one through a materialized view, if there is one.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn fed_by_view(&self, table: &TableInfo) -> Result<Option<String>, RequestError> {
        // A view that writes TO a table names it right after its own name; the table that it reads lists
        // the view as a dependency.
        let view = format!(
            "SELECT database, name FROM system.tables WHERE engine = 'MaterializedView' \
             AND position(replaceAll(create_table_query, '`', ''), {}) > 0",
            quoting::string(format!(" TO {}.{} ", table.database, table.name))
        );
        let source = format!(
            "SELECT database, name FROM system.tables WHERE \
             hasAny(arrayZip(dependencies_database, dependencies_table), \
             (SELECT groupArray((database, name)) FROM ({view})))"
        );
        #[derive(Row, Deserialize)]
        struct Name {
            database: String,
            name: String,
        }
        if self.rows::<Name>(&view).await?.is_empty() {
            return Ok(None);
        }
        let source = self.rows::<Name>(&source).await?.into_iter().next();
        Ok(Some(source.map_or_else(
            || "another table".to_owned(),
            |row| match row.database == table.database {
                true => row.name,
                false => format!("{}.{}", row.database, row.name),
            },
        )))
    }

    /// The active parts of a table.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn parts(&self, table: &TableInfo) -> Result<Parts, RequestError> {
        let query = format!(
            "SELECT sum(rows) AS rows, sum(cityHash64(name)) AS names FROM system.parts \
             WHERE active AND database = {} AND table = {} AND NOT {IS_PATCH}",
            quoting::string(&table.database),
            quoting::string(&table.name)
        );
        let parts = self.rows::<Parts>(&query).await?;
        Ok(parts
            .into_iter()
            .next()
            .unwrap_or(Parts { rows: 0, names: 0 }))
    }

    /// The partitions of a table, oldest first.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn partitions(&self, table: &TableInfo) -> Result<Vec<PartitionSize>, RequestError> {
        self.rows(&format!(
            "SELECT partition_id, sum(rows) AS rows, count() AS parts FROM system.parts \
             WHERE active AND database = {} AND table = {} AND NOT {IS_PATCH} \
             GROUP BY partition_id ORDER BY partition_id",
            quoting::string(&table.database),
            quoting::string(&table.name)
        ))
        .await
    }

    /// How far a partition's inserts and mutations have come.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub(crate) async fn partition_state(
        &self,
        table: &TableInfo,
        partition_id: &str,
    ) -> Result<PartitionState, RequestError> {
        let rows = self
            .rows::<PartitionState>(&format!(
                "SELECT toUInt64(max(max_block_number + 1)) AS newest, \
                 toUInt64(sum(max_block_number - min_block_number + 1)) AS covered, \
                 toUInt64(max(data_version)) AS mutation FROM system.parts \
                 WHERE active AND database = {} AND table = {} AND partition_id = {}",
                quoting::string(&table.database),
                quoting::string(&table.name),
                quoting::string(partition_id)
            ))
            .await?;
        Ok(rows.first().copied().unwrap_or_default())
    }
}
