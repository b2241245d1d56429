//! Finds what v4 counts twice because it reads without `FINAL`: duplicate rows, events of spans
//! that also have a live event, and second root spans.

use serde_bytes::ByteBuf;

use super::examples::Example;
use super::findings::{Finding, Kind};
use super::origin::{EVENT, OBSERVATION, Origin, microseconds, text};
use super::report::EXAMPLES;
use super::rows::{Counted, KeyRow};
use super::scope::{Names, between, one_of};
use super::statements::Statements;
use super::verification::Verification;
use crate::clickhouse::quoting;
use crate::error::Error;

/// Rows whose keys one statement groups. What exceeds memory goes to the server's disk: a gigabyte
/// or two.
const ROWS_AT_ONCE: u64 = 50_000_000;
/// How far before and after the month to look for live root spans.
const AROUND: i64 = 31 * 86_400_000;

impl Verification<'_> {
    /// Counts what exists more than once.
    pub(super) async fn find_what_is_twice(&mut self) -> Result<(), Error> {
        let month = self.calendar.range(&self.month);
        let full = self.statements.event_versions.clone();
        if self.statements.is_replacing {
            let key = span_and_start();
            let count = |share: &str| self.statements.doubled(&full, &key, share, month);
            let counted = self.count_shares(count).await?;
            self.report.doubled_in_full = counted.row_count;
            self.show(&full, &key, &counted, Kind::Doubled).await?;
        }
        if let Some(core) = &self.statements.core {
            let core = core.table();
            let key = span_and_start();
            let count = |share: &str| self.statements.doubled(&core, &key, share, month);
            let counted = self.count_shares(count).await?;
            self.report.doubled_in_core = counted.row_count;
            self.show(&core, &key, &counted, Kind::Doubled).await?;
        }
        if !self.has_live {
            return Ok(());
        }
        let key = span();
        let count = |share: &str| self.statements.beside_live(&key, share, month);
        let counted = self.count_shares(count).await?;
        self.report.beside_live = counted.row_count;
        self.show(&full, &key, &counted, Kind::BesideLive).await?;
        let key = root_of_trace();
        let count = |share: &str| self.statements.second_roots(share, month);
        let counted = self.count_shares(count).await?;
        self.report.second_roots = counted.row_count;
        self.show(&full, &key, &counted, Kind::SecondRoot).await
    }

    /// Counts share by share. `count` gets the end of the condition for a share, after the hash.
    async fn count_shares(&self, count: impl Fn(&str) -> String) -> Result<Counted, Error> {
        let shares = self.event_rows.div_ceil(ROWS_AT_ONCE).max(1);
        let mut total = Counted::default();
        for number in 0..shares {
            let share = format!("% {shares} = {number}");
            let sql = count(&share);
            let rows = self.server.rows::<Counted>("duplicate rows", &sql).await?;
            for counted in rows {
                total.row_count += counted.row_count;
                total.some.extend(counted.some);
            }
        }
        total.some.truncate(EXAMPLES);
        Ok(total)
    }

    /// Keeps examples of what was counted, while there are few.
    async fn show(
        &mut self,
        table: &str,
        key: &str,
        counted: &Counted,
        kind: Kind,
    ) -> Result<(), Error> {
        let left = EXAMPLES.saturating_sub(self.report.examples.len());
        if left == 0 || counted.some.is_empty() {
            return Ok(());
        }
        let month = self.calendar.range(&self.month);
        let sql = self.statements.some_keys(table, key, &counted.some, month);
        let keys = self.server.rows::<KeyRow>("duplicate rows", &sql).await?;
        for row in keys.into_iter().take(left) {
            let finding = Finding {
                kind,
                start: row.start,
                origin: None,
                of_trace: false,
            };
            let mut example = Example::new(&row.key(), &finding);
            if kind == Kind::Doubled {
                example.problem = format!(
                    "{} unmerged rows in {}, and v4 counts each",
                    row.row_count,
                    table
                        .trim_end_matches(&format!(" AS {EVENT}"))
                        .replace('`', "")
                );
            }
            self.report.examples.push(example);
        }
        Ok(())
    }
}

/// The hash of an event's span and start.
fn span_and_start() -> String {
    let names = Names::of(Origin::Event);
    format!(
        "cityHash64({}, {}, {}, {})",
        text(&names.project),
        text(&names.trace),
        text(&names.span),
        microseconds(&names.moment)
    )
}

/// The hash of an event's span.
fn span() -> String {
    let names = Names::of(Origin::Event);
    format!(
        "cityHash64({}, {}, {})",
        text(&names.project),
        text(&names.trace),
        text(&names.span)
    )
}

/// The hash of an event's trace.
fn trace() -> String {
    let names = Names::of(Origin::Event);
    format!(
        "cityHash64({}, {})",
        text(&names.project),
        text(&names.trace)
    )
}

/// The hash of a root span's trace, or null for other events.
fn root_of_trace() -> String {
    format!(
        "if({}, {}, NULL)",
        Names::of(Origin::Event).is_root(),
        trace()
    )
}

impl Statements {
    /// Rows beyond the first per key, if one of them is a backfill's: [`Counted`].
    fn doubled(&self, table: &str, key: &str, share: &str, month: (i64, i64)) -> String {
        format!(
            "SELECT toUInt64(sum(rows_of_key - 1)) AS row_count, groupArray({EXAMPLES})(h) AS some \
             FROM (SELECT {key} AS h, count() AS rows_of_key FROM {table} \
             WHERE {} AND {EVENT}.is_deleted = 0 AND h {share} GROUP BY h \
             HAVING rows_of_key > 1 AND min({}) = 0)",
            in_month(month),
            self.columns.by_others(),
        )
    }

    /// Spans with both a backfill's event and a live one that starts at another time: [`Counted`].
    fn beside_live(&self, key: &str, share: &str, month: (i64, i64)) -> String {
        let by_others = self.columns.by_others();
        format!(
            "SELECT count() AS row_count, groupArray({EXAMPLES})(h) AS some \
             FROM (SELECT {key} AS h FROM {} \
             WHERE {} AND {EVENT}.is_deleted = 0 AND h {share} GROUP BY h \
             HAVING min({by_others}) != max({by_others}) \
             AND min({EVENT}.start_time) != max({EVENT}.start_time))",
            self.event_versions,
            in_month(month),
        )
    }

    /// Traces with both a backfill's root span and a live one with another id: [`Counted`]. An
    /// observation with a root span's id does not count as one.
    fn second_roots(&self, share: &str, month: (i64, i64)) -> String {
        let event = Names::of(Origin::Event);
        let observation = Names::of(Origin::Observation);
        let around = (month.0 - AROUND, month.1 + AROUND);
        format!(
            "SELECT count() AS row_count, groupArray({EXAMPLES})(h) AS some FROM (\
             SELECT h FROM (\
             SELECT {trace} AS h, toUInt8(1) AS own FROM {events} \
             WHERE {} AND NOT ({}) AND {} AND ({}, {}) NOT IN (\
             SELECT {}, {} FROM {} AS {OBSERVATION} FINAL \
             WHERE {OBSERVATION}._partition_id = {} AND {}) \
             UNION ALL SELECT {trace} AS h, toUInt8(0) AS own FROM {events} WHERE {} AND {}) \
             WHERE h {share} GROUP BY h HAVING min(own) != max(own))",
            in_month(month),
            self.columns.by_others(),
            event.is_root(),
            event.project,
            event.trace,
            observation.project,
            observation.trace,
            self.observations,
            quoting::string(&self.partition_id),
            observation.is_root(),
            in_month(around),
            self.is_live_root(),
            trace = trace(),
            events = self.events,
        )
    }

    /// Which of these traces have a live root span: [`Id`](super::rows::Id)s.
    pub(super) fn traces_with_live_roots(&self, project: &ByteBuf, ids: &[ByteBuf]) -> String {
        let event = Names::of(Origin::Event);
        format!(
            "SELECT DISTINCT {} AS id FROM {} WHERE {} AND {} AND {}",
            text(&event.trace),
            self.events,
            one_of(&event.project, std::slice::from_ref(project)),
            one_of(&event.trace, ids),
            self.is_live_root()
        )
    }

    /// Whether the target has any live row: a [`Number`](super::rows::Number), or nothing.
    pub(super) fn some_live_row(&self) -> String {
        format!(
            "SELECT toUInt64(1) AS number FROM {} WHERE {} != 0 LIMIT 1",
            self.event_versions,
            self.columns.by_others()
        )
    }

    /// Events whose key hashes are among these: [`KeyRow`]s.
    fn some_keys(&self, table: &str, key: &str, hashes: &[u64], month: (i64, i64)) -> String {
        let names = Names::of(Origin::Event);
        let hashes: Vec<String> = hashes.iter().map(u64::to_string).collect();
        format!(
            "SELECT any({}) AS project, any({}) AS trace_id, any({}) AS span_id, \
             min({}) AS start, count() AS row_count FROM {table} \
             WHERE {} AND {key} IN ({}) GROUP BY {key}",
            text(&names.project),
            text(&names.trace),
            text(&names.span),
            microseconds(&names.moment),
            in_month(month),
            hashes.join(", ")
        )
    }
}

fn in_month(month: (i64, i64)) -> String {
    between(&Names::of(Origin::Event).moment, month)
}
