//! Checks the table that a view fills from the target, `events_core`, against what the view makes
//! of the target's rows. For live rows it compares only the keys.

use clickhouse::Row;
use serde::Deserialize;
use serde_bytes::ByteBuf;

use super::events_core::Core;
use super::examples::Example;
use super::findings::{Finding, Kind};
use super::observation_columns::OwnColumn;
use super::origin::{EVENT, Origin};
use super::report::EXAMPLES;
use super::rows::EventKey;
use super::scope::{Scope, between};
use super::server::QueryError;
use super::statements::{Side, Statements};
use super::verification::Verification;
use crate::clickhouse::{TableInfo, quoting};
use crate::error::Error;
use crate::native::DataType;

/// Columns required for comparing.
const NEEDED: [&str; 7] = [
    "project_id",
    "trace_id",
    "span_id",
    "start_time",
    "event_ts",
    "is_deleted",
    "source",
];
/// Reads both sides as if fully merged.
const AS_MERGED: &str = "SETTINGS final = 1";

/// Newer live rows may not have reached the view's table when it was read.
const ON_ITS_WAY: &str = "now64(6) - INTERVAL 1 HOUR";

/// A view and its target table.
#[derive(Debug, Row, Deserialize)]
struct View {
    view_database: String,
    view_name: String,
    select: String,
    database: String,
    name: String,
}

/// A column of a table.
#[derive(Debug, Row, Deserialize)]
struct Column {
    name: String,
    data_type: String,
    default_kind: String,
}

/// A row that differs between the two sides.
#[derive(Debug, Row, Deserialize)]
struct CoreRow {
    project: ByteBuf,
    trace_id: ByteBuf,
    span_id: ByteBuf,
    start: i64,
    made: u64,
    there: u64,
    own_of_key: u8,
}

impl Verification<'_> {
    /// Finds the view and its table. If there are several views, takes the first whose table holds
    /// events.
    pub(super) async fn find_core(&mut self, target: &TableInfo) -> Result<(), Error> {
        let views = views_of(target);
        let views = self.server.rows::<View>("the views", &views);
        for view in views.await? {
            let made = self.columns_of(&view.view_database, &view.view_name);
            let made = made.await?;
            let there = self.columns_of(&view.database, &view.name).await?;
            let has = |columns: &[Column], name: &str| columns.iter().any(|one| one.name == name);
            let label = format!("{}.{}", view.database, view.name);
            let lacking = NEEDED
                .iter()
                .find(|name| !has(&made, name) || !has(&there, name));
            if let Some(lacking) = lacking {
                let what = format!("{label} (no column {lacking})");
                self.report.not_compared.push(what);
                continue;
            }
            let mut columns = Vec::new();
            for column in there.iter().filter(|column| has(&made, &column.name)) {
                if matches!(column.default_kind.as_str(), "MATERIALIZED" | "ALIAS") {
                    continue;
                }
                match DataType::parse(&column.data_type) {
                    Ok(data_type) => columns.push(OwnColumn {
                        name: column.name.clone(),
                        data_type,
                        expression: String::new(),
                        root_span: None,
                    }),
                    Err(_) => {
                        let what = format!("{label}.{} ({})", column.name, column.data_type);
                        self.report.not_compared.push(what);
                    }
                }
            }
            self.statements.core = Some(Core {
                select: view.select,
                name: quoting::qualified(&view.database, &view.name),
                label,
                columns,
            });
            return Ok(());
        }
        Ok(())
    }

    async fn columns_of(&self, database: &str, table: &str) -> Result<Vec<Column>, Error> {
        let sql = format!(
            "SELECT name, type AS data_type, default_kind FROM system.columns \
             WHERE database = {} AND table = {} ORDER BY position",
            quoting::string(database),
            quoting::string(table)
        );
        self.server.rows("the columns of the view", &sql).await
    }

    /// Records nothing if it fails with an error that calls for dividing the scope.
    pub(super) async fn compare_with_core(&mut self, scope: &Scope) -> Result<(), QueryError> {
        let sql = self.statements.different_in_core(scope);
        let rows = self
            .server
            .rows_of_share::<CoreRow>("rows of the view's table", &sql, scope.share)
            .await?;
        for row in rows {
            let kind = match (row.made > row.there, row.made < row.there) {
                (true, _) => Kind::MissingInCore,
                (_, true) if row.own_of_key == 0 => continue,
                (_, true) => Kind::ExtraInCore,
                _ => Kind::DifferentInCore,
            };
            let finding = Finding {
                kind,
                start: row.start,
                origin: None,
                of_trace: row.span_id.strip_prefix(b"t-") == Some(&row.trace_id[..]),
            };
            let key = EventKey {
                project: row.project,
                trace_id: row.trace_id,
                span_id: row.span_id,
                start: row.start,
            };
            // The row is right; the target lacks it, which is reported already.
            if kind == Kind::ExtraInCore && self.missing.has(&key) {
                continue;
            }
            self.count_finding(&key, &finding);
            if self.report.examples.len() < EXAMPLES {
                let table = self.report.core_name();
                let example = Example::new(&key, &finding).in_core(kind, table);
                self.report.examples.push(example);
            }
        }
        Ok(())
    }
}

/// The views that read a table, and the tables they write to.
fn views_of(target: &TableInfo) -> String {
    format!(
        "SELECT v.database AS view_database, v.name AS view_name, v.as_select AS select, \
         d.database AS database, d.name AS name \
         FROM system.tables AS v CROSS JOIN system.tables AS d \
         WHERE v.engine = 'MaterializedView' AND d.engine LIKE '%MergeTree' \
         AND (v.database, v.name) IN (\
         SELECT arrayJoin(arrayZip(dependencies_database, dependencies_table)) \
         FROM system.tables WHERE database = {} AND name = {}) \
         AND position(replaceAll(v.create_table_query, '`', ''), \
         concat(' TO ', d.database, '.', d.name, ' ')) > 0 ORDER BY view_database, view_name",
        quoting::string(&target.database),
        quoting::string(&target.name)
    )
}

impl Statements {
    /// Rows of the view's table per piece: [`PieceRows`](super::rows::PieceRows).
    pub(super) fn count_core(&self, moments: (i64, i64)) -> Option<String> {
        let core = self.core.as_ref()?;
        Some(format!(
            "SELECT CAST({EVENT}.project_id, 'String') AS project, {} AS day, \
             count() AS row_count FROM {} WHERE {} GROUP BY project, day",
            self.event_day(),
            core.table(),
            between(&format!("{EVENT}.start_time"), moments)
        ))
    }

    /// The view's output or its table's content: per event the keys, the hash of the values, and
    /// whether a backfill wrote it.
    fn core_rows(&self, side: Side, scope: &Scope) -> String {
        let Some(core) = &self.core else {
            return String::new();
        };
        let from = match side {
            Side::Source => format!("({}) AS {EVENT}", core.select),
            Side::Target => core.table(),
        };
        let by_others = self.columns.by_others();
        let values: Vec<String> = core
            .columns
            .iter()
            .map(|column| column.hashed(Origin::Event))
            .collect();
        format!(
            "SELECT {}, cityHash64({}) AS value_hash, toUInt8({by_others} = 0) AS own, \
             toUInt8({by_others} != 0 AND {EVENT}.event_ts > {ON_ITS_WAY}) AS on_its_way \
             FROM {from} WHERE {}",
            self.keys(Origin::Event),
            values.join(", "),
            scope.condition(Origin::Event),
        )
    }

    /// Counts and sums of one side: [`Sums`](super::rows::Sums), with hashes of the key first and
    /// of the values second.
    pub(super) fn sums_of_core(&self, side: Side, scope: &Scope, slices: u64) -> String {
        let slice = match slices {
            1 => "toUInt64(0)".to_owned(),
            _ => format!("toUInt64(cityHash64(key_trace, key_span) % {slices})"),
        };
        let key = "cityHash64(key_project, key_trace, key_span, key_start)";
        format!(
            "SELECT key_project AS project, key_day AS day, toUInt8(0) AS class, {slice} AS slice, \
             count() AS row_count, sum({key}) AS own_sum, groupBitXor({key}) AS own_xor, \
             sumIf(value_hash, own != 0) AS trace_sum, \
             groupBitXorIf(value_hash, own != 0) AS trace_xor, \
             toUInt64(0) AS without_trace, toUInt64(0) AS of_traces FROM ({}) \
             GROUP BY project, day, class, slice {AS_MERGED}",
            self.core_rows(side, scope)
        )
    }

    /// The rows that differ: [`CoreRow`]s.
    fn different_in_core(&self, scope: &Scope) -> String {
        let side = |number: u8, side| {
            let rows = self.core_rows(side, scope);
            format!("SELECT toUInt8({number}) AS side, * FROM ({rows})")
        };
        format!(
            "SELECT key_project AS project, key_trace AS trace_id, key_span AS span_id, key_start \
             AS start, countIf(side = 0) AS made, countIf(side = 1) AS there, max(own) AS \
             own_of_key FROM ({} UNION ALL {}) GROUP BY project, trace_id, span_id, start HAVING \
             max(on_its_way) = 0 AND (made != there OR own_of_key != 0 AND sumIf(value_hash, side \
             = 0) != sumIf(value_hash, side = 1)) {AS_MERGED}",
            side(0, Side::Source),
            side(1, Side::Target),
        )
    }
}
