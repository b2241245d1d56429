//! Sizes of tables, and the free space for them.

use crate::memory::numbers::whole;
use std::collections::BTreeMap;
use std::ops::{Add, AddAssign};

use clickhouse::Row;
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use super::error::RequestError;
use super::quoting;
use super::schema::TableInfo;

/// Bytes stored in a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StoredBytes {
    /// On the server's disk.
    pub compressed: u64,
    /// In memory, and about what an uncompressed transfer takes.
    pub uncompressed: u64,
}

impl StoredBytes {
    /// This fraction of it, at most 1.
    pub fn share(self, share: f64) -> Self {
        let part = |bytes: u64| whole(bytes as f64 * share);
        Self {
            compressed: part(self.compressed),
            uncompressed: part(self.uncompressed),
        }
    }
}

impl Add for StoredBytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            compressed: self.compressed + other.compressed,
            uncompressed: self.uncompressed + other.uncompressed,
        }
    }
}

impl AddAssign for StoredBytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Bytes of each column of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColumnSizes {
    columns: BTreeMap<String, StoredBytes>,
    /// All columns together, in the parts that have no sizes per column.
    of_compact_parts: StoredBytes,
}

impl ColumnSizes {
    /// An upper bound for the `wanted` columns: small (compact) parts count with all their columns.
    pub fn of(&self, wanted: impl Fn(&str) -> bool) -> StoredBytes {
        let wanted = self.columns.iter().filter(|(name, _)| wanted(name));
        wanted.fold(self.of_compact_parts, |sum, (_, &bytes)| sum + bytes)
    }
}

/// The size of a table, all partitions together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Row, Deserialize)]
pub struct TableSize {
    /// Rows in its parts, including versions that are not merged yet.
    pub rows: u64,
    /// Bytes of its parts on disk, including indexes.
    pub bytes_on_disk: u64,
}

/// A disk of a table's storage policy.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct Disk {
    /// Its name in the server's configuration.
    pub name: String,
    /// Free bytes, less those that the server is configured to keep free.
    pub free_bytes: u64,
}

/// Free bytes from which a disk counts as unlimited: object storage reports numbers like this.
const WITHOUT_END: u64 = 1 << 60;

impl Disk {
    /// Whether it is practically unlimited, as object storage is.
    pub fn is_endless(&self) -> bool {
        self.free_bytes >= WITHOUT_END
    }
}

/// A table by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    /// Its database.
    pub database: String,
    /// Its name.
    pub name: String,
}

#[derive(Row, Deserialize)]
struct ColumnSize {
    column: String,
    compressed: u64,
    uncompressed: u64,
}

#[derive(Row, Deserialize)]
struct Text {
    text: String,
}

#[derive(Row, Deserialize)]
struct Count {
    count: u64,
}

impl Connection {
    /// Bytes of the columns of one partition.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn column_sizes(
        &self,
        table: &TableInfo,
        partition_id: &str,
    ) -> Result<ColumnSizes, RequestError> {
        let partition = format!(
            "active AND database = {} AND table = {} AND partition_id = {}",
            quoting::string(&table.database),
            quoting::string(&table.name),
            quoting::string(partition_id)
        );
        // Compact parts (the small ones) have no sizes per column.
        let statement = format!(
            "SELECT column, sum(column_data_compressed_bytes) AS compressed, \
             sum(column_data_uncompressed_bytes) AS uncompressed FROM system.parts_columns \
             WHERE {partition} AND part_type != 'Compact' GROUP BY column UNION ALL \
             SELECT '' AS column, sum(data_compressed_bytes) AS compressed, \
             sum(data_uncompressed_bytes) AS uncompressed FROM system.parts \
             WHERE {partition} AND part_type = 'Compact'"
        );
        let mut sizes = ColumnSizes::default();
        for row in self.rows::<ColumnSize>(&statement).await? {
            let bytes = StoredBytes {
                compressed: row.compressed,
                uncompressed: row.uncompressed,
            };
            match row.column.is_empty() {
                true => sizes.of_compact_parts += bytes,
                false => *sizes.columns.entry(row.column).or_default() += bytes,
            }
        }
        Ok(sizes)
    }

    /// The size of a table; zero if there is no such table.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn table_size(&self, table: &TableName) -> Result<TableSize, RequestError> {
        let rows = self
            .rows::<TableSize>(&format!(
                "SELECT sum(rows) AS rows, sum(bytes_on_disk) AS bytes_on_disk \
                 FROM system.parts WHERE active AND database = {} AND table = {}",
                quoting::string(&table.database),
                quoting::string(&table.name)
            ))
            .await?;
        Ok(rows.into_iter().next().unwrap_or(TableSize {
            rows: 0,
            bytes_on_disk: 0,
        }))
    }

    /// Rows of a month in a table of events, including versions that are not merged yet.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn event_rows(
        &self,
        events: &TableInfo,
        partition_id: &str,
    ) -> Result<u64, RequestError> {
        // With monthly partitions system.parts knows, so no right to read the table is needed.
        if events.partition_key == "toYYYYMM(start_time)" {
            let partitions = self.partitions(events).await?;
            return Ok(partitions
                .iter()
                .filter(|partition| partition.partition_id == partition_id)
                .map(|partition| partition.rows)
                .sum());
        }
        let statement = format!(
            "SELECT count() AS count FROM {} WHERE toYYYYMM(start_time) = {partition_id}",
            events.qualified_name()
        );
        let counts = self
            .rows_within::<Count>(&statement, super::connection::READ_TIMEOUT)
            .await?;
        Ok(counts.iter().map(|row| row.count).sum())
    }

    /// The tables that materialized views fill from inserts into `table`.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn fed_tables(&self, table: &TableInfo) -> Result<Vec<TableName>, RequestError> {
        let definitions = self
            .rows::<Text>(&format!(
                "SELECT replaceAll(create_table_query, '`', '') AS text FROM system.tables \
                 WHERE engine = 'MaterializedView' AND (database, name) IN (\
                 SELECT arrayJoin(arrayZip(dependencies_database, dependencies_table)) \
                 FROM system.tables WHERE database = {} AND name = {})",
                quoting::string(&table.database),
                quoting::string(&table.name)
            ))
            .await?;
        let targets = definitions.iter().filter_map(|row| target_of(&row.text));
        Ok(targets.collect())
    }

    /// The expressions that a table has text indexes on.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn text_indexes(&self, table: &TableName) -> Result<Vec<String>, RequestError> {
        let expressions = self
            .rows::<Text>(&format!(
                "SELECT expr AS text FROM system.data_skipping_indices \
                 WHERE database = {} AND table = {} AND type IN ('text', 'full_text', 'inverted')",
                quoting::string(&table.database),
                quoting::string(&table.name)
            ))
            .await?;
        Ok(expressions.into_iter().map(|row| row.text).collect())
    }

    /// The disks of a table's storage policy.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn disks(&self, table: &TableInfo) -> Result<Vec<Disk>, RequestError> {
        self.rows(&format!(
            "SELECT name, free_space AS free_bytes \
             FROM system.disks WHERE name IN (SELECT arrayJoin(disks) FROM \
             system.storage_policies WHERE policy_name IN (SELECT storage_policy FROM \
             system.tables WHERE database = {} AND name = {})) ORDER BY name",
            quoting::string(&table.database),
            quoting::string(&table.name)
        ))
        .await
    }
}

/// The target table of a view, if the view names one:
/// `CREATE MATERIALIZED VIEW a.b TO c.d (…) AS …`, without quotes.
fn target_of(definition: &str) -> Option<TableName> {
    let (before, rest) = definition.split_once(" TO ")?;
    // A TO inside the SELECT does not count.
    if before.contains(" AS ") || before.contains('(') {
        return None;
    }
    let name = rest.split([' ', '(']).next()?;
    let (database, name) = name.split_once('.')?;
    Some(TableName {
        database: database.to_owned(),
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_of_a_view_is_read_from_its_definition() {
        let target = |definition| target_of(definition).map(|table| (table.database, table.name));
        let expected = Some(("lang".to_owned(), "events_core".to_owned()));
        for definition in [
            "CREATE MATERIALIZED VIEW lang.core_mv TO lang.events_core (project_id String) AS SELECT 1",
            "CREATE MATERIALIZED VIEW lang.core_mv TO lang.events_core AS SELECT 1",
            "CREATE MATERIALIZED VIEW lang.core_mv TO lang.events_core(project_id String) AS SELECT 1",
        ] {
            assert_eq!(target(definition), expected, "{definition}");
        }
        for definition in [
            "CREATE MATERIALIZED VIEW a.b (x String) ENGINE = MergeTree ORDER BY x AS SELECT ' TO c.d '",
            "CREATE MATERIALIZED VIEW a.b TO INNER UUID 'x' AS SELECT 1",
            "",
        ] {
            assert_eq!(target(definition), None, "{definition}");
        }
    }

    #[test]
    fn sizes_are_those_of_the_columns_asked_for_and_of_all_small_parts() {
        let bytes = |compressed| StoredBytes {
            compressed,
            uncompressed: 10 * compressed,
        };
        let sizes = ColumnSizes {
            columns: BTreeMap::from([("a".to_owned(), bytes(1)), ("b".to_owned(), bytes(20))]),
            of_compact_parts: bytes(300),
        };
        assert_eq!(sizes.of(|name| name == "b"), bytes(320));
        assert_eq!(sizes.of(|_| true), bytes(321));
        assert_eq!(sizes.of(|_| false), bytes(300));
    }
}
