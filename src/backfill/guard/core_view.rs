//! Fills gaps in `events_core`, the table that the target's materialized view fills.
//!
//! ClickHouse commits a part of `events_full` before the view's copy of it. If the server dies in
//! between, or the view fails, `events_core` lacks rows that `events_full` has, and v4's lists read
//! `events_core`. The view's own SELECT fills the gap.

use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;

use super::target::{BACKFILL_SOURCES, COLUMNS, Extent, TargetMonth};
use crate::clickhouse::{Connection, RequestError, TABLE_TIMEOUT, TableInfo, quoting};

/// Columns needed to tell rows apart.
const KEYS: [&str; 6] = [
    "project_id",
    "trace_id",
    "span_id",
    "start_time",
    "event_ts",
    "source",
];
/// Keys of the view's table that one statement holds in the server's memory: 16 bytes each, in a
/// hash table up to half empty.
const KEYS_PER_STATEMENT: u64 = 4_000_000;
/// Timeout of one statement.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// A materialized view that writes to a separate table.
#[derive(Debug, Clone)]
pub(crate) struct CoreView {
    /// The table it writes to.
    pub table: TableInfo,
    /// Its SELECT over the target.
    select: String,
    /// The columns it fills.
    columns: Vec<String>,
}

#[derive(Row, Deserialize)]
struct ViewRow {
    database: String,
    name: String,
    create_table_query: String,
    as_select: String,
}

#[derive(Row, Deserialize)]
struct Name {
    name: String,
}

/// Whose rows to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Those written by backfills.
    Backfills,
    /// Langfuse's too, except rows so new that the view may still be copying them.
    Everybodys,
}

impl Whose {
    fn condition(self) -> String {
        match self {
            Whose::Backfills => format!("e.source IN ({BACKFILL_SOURCES})"),
            Whose::Everybodys => format!(
                "(e.source IN ({BACKFILL_SOURCES}) OR e.event_ts < now64(6) - INTERVAL 1 HOUR)"
            ),
        }
    }
}

/// Which target rows to copy.
enum Lacking {
    /// Those whose key and `event_ts` the table lacks.
    Keys,
    /// Those written after one block of the target and not after another of the table.
    Since(u64, Option<u64>),
}

/// A count and a sum over the rows of part of a table.
#[derive(Row, Deserialize, PartialEq, Eq)]
struct Sums {
    rows: u64,
    hashes: u64,
}

impl CoreView {
    /// The views that copy `target`'s rows into compatible tables.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects a query or cannot be reached.
    pub(crate) async fn all(
        connection: &Connection,
        target: &TableInfo,
    ) -> Result<Vec<Self>, RequestError> {
        let views = connection
            .rows::<ViewRow>(&format!(
                "SELECT database, name, create_table_query, as_select FROM system.tables \
                 WHERE engine = 'MaterializedView' AND (database, name) IN \
                 (SELECT arrayJoin(arrayZip(dependencies_database, dependencies_table)) \
                 FROM system.tables WHERE database = {} AND name = {}) ORDER BY database, name",
                quoting::string(&target.database),
                quoting::string(&target.name)
            ))
            .await?;
        let mut copies = Vec::new();
        for view in views {
            let Some((database, name)) = destination(&view) else {
                continue;
            };
            let Some(table) = connection.table(&database, &name).await? else {
                continue;
            };
            let columns = connection
                .rows::<Name>(&format!(
                    "SELECT name FROM system.columns WHERE database = {} AND table = {} \
                     ORDER BY position",
                    quoting::string(&view.database),
                    quoting::string(&view.name)
                ))
                .await?;
            let fills = |name: &str| table.column(name).is_some_and(|c| c.is_insertable());
            let columns: Vec<String> = columns.into_iter().map(|column| column.name).collect();
            if !KEYS.iter().all(|key| columns.iter().any(|c| c == key)) {
                // It aggregates, or does not copy the rows themselves.
                continue;
            }
            copies.push(Self {
                columns: columns.into_iter().filter(|name| fills(name)).collect(),
                table,
                select: view.as_select,
            });
        }
        Ok(copies)
    }

    /// Whether the table matches the target in an extent, by a count and a sum. Unmerged duplicates
    /// also count as a difference.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects a query or cannot be reached.
    pub(crate) async fn is_level(
        &self,
        target: &TargetMonth,
        extent: &Extent,
    ) -> Result<bool, RequestError> {
        let of = async |table: &TableInfo| {
            let query = format!(
                "SELECT count() AS rows, sum({}) AS hashes FROM {} AS e WHERE {}",
                COLUMNS.hash("e.start_time"),
                table.qualified_name(),
                target.column_condition(extent)
            );
            let rows = target.connection.rows_within::<Sums>(&query, TABLE_TIMEOUT);
            rows.await
        };
        Ok(of(&target.table).await? == of(&self.table).await?)
    }

    /// Copies the target rows that the table lacks. `name` starts the statements' query ids.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects a statement or cannot be reached. Repeating it is
    /// safe.
    pub(crate) async fn level(
        &self,
        target: &TargetMonth,
        extent: &Extent,
        whose: Whose,
        name: &str,
    ) -> Result<(), RequestError> {
        self.copy(target, extent, &Lacking::Keys, whose, name).await
    }

    /// Copies what a backfill wrote to the target after one block unless the table received it
    /// after another, even if the table has an older row with the same key. If the tables do not
    /// keep block numbers, copies everything.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects a statement or cannot be reached. Repeating it is
    /// safe.
    pub(crate) async fn copy_again(
        &self,
        target: &TargetMonth,
        extent: &Extent,
        (of_target, of_table): (u64, Option<u64>),
        name: &str,
    ) -> Result<(), RequestError> {
        let lacking = Lacking::Since(of_target, of_table);
        self.copy(target, extent, &lacking, Whose::Backfills, name)
            .await
    }

    async fn copy(
        &self,
        target: &TargetMonth,
        extent: &Extent,
        lacking: &Lacking,
        whose: Whose,
        name: &str,
    ) -> Result<(), RequestError> {
        let condition = target.column_condition(extent);
        let count = format!(
            "SELECT count() AS rows, toUInt64(0) AS hashes FROM {} AS e WHERE {condition}",
            self.table.qualified_name()
        );
        let rows = target.connection.rows_within::<Sums>(&count, TABLE_TIMEOUT);
        let rows: u64 = rows.await?.iter().map(|sums| sums.rows).sum();
        let shares = rows / KEYS_PER_STATEMENT + 1;
        let hash = COLUMNS.hash("e.start_time");
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|name| quoting::identifier(name))
            .collect();
        let columns = columns.join(", ");
        for share in 0..shares {
            let of_share = match shares {
                1 => String::new(),
                _ => format!(" AND {hash} % {shares} = {share}"),
            };
            let is_copied = match lacking {
                Lacking::Keys => format!(
                    "NOT IN (SELECT {hash}, e.event_ts FROM {} AS e WHERE {condition}{of_share})",
                    self.table.qualified_name()
                ),
                Lacking::Since(of_target, of_table) => {
                    let written = |table: &TableInfo, block: u64| {
                        format!(
                            "(SELECT {hash}, e.event_ts FROM {} AS e \
                             WHERE {condition}{of_share} AND e._block_number > {block})",
                            table.qualified_name()
                        )
                    };
                    let has_them = of_table.map_or_else(String::new, |block| {
                        let has = written(&self.table, block);
                        format!(" AND ({hash}, e.event_ts) NOT IN {has}")
                    });
                    format!("IN {}{has_them}", written(&target.table, *of_target))
                }
            };
            let statement = format!(
                "INSERT INTO {} ({columns}) SELECT {columns} FROM ({}) AS e \
                 WHERE {condition} AND {}{of_share} AND ({hash}, e.event_ts) {is_copied}",
                self.table.qualified_name(),
                self.select,
                whose.condition(),
            );
            let id = format!("{name}-{share}-{:x}", fastrand::u64(..));
            let settings = [
                ("query_id", id),
                // The last row per key: earlier ones may be merged away in the table but still
                // exist in the target.
                ("final", "1".to_owned()),
            ];
            target
                .connection
                .execute(&statement, &settings, PATIENCE)
                .await?;
        }
        Ok(())
    }
}

/// Parses the destination table from `CREATE MATERIALIZED VIEW db.view [UUID …] TO db.table
/// [(columns)] AS …`.
fn destination(view: &ViewRow) -> Option<(String, String)> {
    let (_, rest) = view.create_table_query.split_once(" TO ")?;
    let (database, rest) = name_at_start(rest)?;
    let (table, _) = name_at_start(rest.strip_prefix('.')?)?;
    Some((database, table))
}

/// Splits off a leading identifier, quoted or not.
fn name_at_start(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('`') else {
        let end = text
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        return (!name.is_empty()).then(|| (name.to_owned(), rest));
    };
    let mut name = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, c)) = characters.next() {
        match c {
            '`' => return Some((name, &quoted[index + 1..])),
            '\\' => name.extend(characters.next().map(|(_, c)| c)),
            _ => name.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_a_view_is_found_in_its_statement() {
        let destination = |query: &str| {
            destination(&ViewRow {
                database: String::new(),
                name: String::new(),
                create_table_query: query.to_owned(),
                as_select: String::new(),
            })
        };
        let named = |database: &str, table: &str| Some((database.to_owned(), table.to_owned()));
        assert_eq!(
            destination("CREATE MATERIALIZED VIEW x.v TO x.events_core (`a` String) AS SELECT 1"),
            named("x", "events_core")
        );
        assert_eq!(
            destination("CREATE MATERIALIZED VIEW `a-b`.v TO `a-b`.`c\\`d` AS SELECT 1"),
            named("a-b", "c`d")
        );
        assert_eq!(
            destination("CREATE MATERIALIZED VIEW x.v (`a` String) ENGINE = Null"),
            None
        );
    }
}
