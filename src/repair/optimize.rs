//! Has ClickHouse merge a month of the target and the tables its views fill, and waits for it.

use std::fmt;
use std::time::{Duration, Instant};

use clickhouse::Row;
use indicatif::HumanCount;
use serde::{Deserialize, Serialize};

use crate::backfill::guard::core_view::CoreView;
use crate::backfill::guard::target::TargetMonth;
use crate::clickhouse::{Connection, RequestError, TableInfo, quoting};
use crate::error::{Error, Kind};
use crate::partition::Partition;
use crate::progress::{Display, Phase};
use crate::shutdown::Shutdown;

/// Maximum time for one merge. Large months take hours.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Polling interval for a merge's progress.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Maximum consecutive refusals or failures.
const FAILURES: u32 = 30;
/// CANNOT_ASSIGN_OPTIMIZE: another merge is running.
const CANNOT_ASSIGN: u32 = 388;
/// UNFINISHED: a replica is offline and merges later.
const UNFINISHED: u32 = 341;

/// Merges a month.
pub(super) struct Optimizer {
    /// The server.
    pub connection: Connection,
    /// Shows progress.
    pub display: Display,
    /// Signals a request to stop.
    pub shutdown: Shutdown,
    /// The target.
    pub target: TableInfo,
    /// The month.
    pub partition: Partition,
    /// Counts the rows left to merge.
    pub month: TargetMonth,
}

/// The result for one table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Optimized {
    /// Its name.
    pub table: String,
    /// Rows before.
    pub rows_before: u64,
    /// Rows after.
    pub rows_after: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl fmt::Display for Optimized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows, down from {}, in {:.1} s",
            HumanCount(self.rows_after),
            HumanCount(self.rows_before),
            self.seconds
        )
    }
}

/// A partition's parts.
#[derive(Debug, Clone, Copy, Row, Deserialize)]
struct Parts {
    rows: u64,
    parts: u64,
    least_level: u64,
}

impl Parts {
    /// Whether there is nothing left to merge: one part, or a newest part that is already merged.
    fn are_merged(self) -> bool {
        self.parts == 0 || (self.parts == 1 && self.least_level > 0)
    }
}

#[derive(Row, Deserialize)]
struct Merging {
    merges: u64,
    rows_read: u64,
}

impl Optimizer {
    /// Merges one table after another, first those that the views fill, since v4 reads them.
    /// Continues after a table that the server does not merge.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if the server fails to merge a table,
    /// [`Kind::Interrupted`](crate::error::Kind) on a signal.
    pub(super) async fn run(&self, optimized: &mut Vec<Optimized>) -> Result<(), Error> {
        let views = CoreView::all(&self.connection, &self.target).await;
        let views = views.map_err(|error| Error::caused("cannot read the views", error))?;
        let tables = views.into_iter().map(|view| view.table);
        let mut outcome = Ok(());
        for table in tables.chain([self.target.clone()]) {
            match self.optimize(&table).await {
                Ok(merged) => optimized.push(merged),
                Err(error) if error.kind() == Kind::Failed => outcome = outcome.and(Err(error)),
                Err(error) => return Err(error),
            }
        }
        outcome
    }

    /// Counts duplicate rows left after merging.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if they cannot be counted.
    pub(super) async fn rows_left(&self) -> Result<u64, Error> {
        let rows = self.month.rows_to_merge().await;
        rows.map_err(|error| Error::caused("cannot count the unmerged duplicates", error))
    }

    async fn optimize(&self, table: &TableInfo) -> Result<Optimized, Error> {
        let started = Instant::now();
        let name = format!("{}.{}", table.database, table.name);
        let failed = |error| Error::caused(format!("cannot merge {name}"), error);
        let before = self.parts(table).await.map_err(failed)?;
        let phase = Phase::begin(&self.display, "rows merged", before.rows, 0);
        let mut failures = 0;
        let mut after = before;
        while !after.are_merged() {
            let error = tokio::select! {
                merged = self.ask_to_merge(table) => merged.err(),
                never = self.show(table, &phase) => match never {},
                signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
            };
            let was_done = error.is_none();
            if let Some(error) = error {
                failures += 1;
                let may_pass =
                    error.is_passing() || matches!(error.code(), Some(CANNOT_ASSIGN | UNFINISHED));
                if !may_pass || failures > FAILURES {
                    return Err(failed(error));
                }
                self.display.note(format_args!("merging {name}: {error}"));
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY * failures) => {}
                    signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
                }
            }
            // The server may still be merging although its answer was lost.
            after = self.wait_for_merges(table, &phase).await?;
            if was_done {
                break;
            }
        }
        phase.finish();
        Ok(Optimized {
            table: name,
            rows_before: before.rows,
            rows_after: after.rows,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    async fn ask_to_merge(&self, table: &TableInfo) -> Result<(), RequestError> {
        let statement = format!(
            "OPTIMIZE TABLE {} PARTITION ID {} FINAL",
            table.qualified_name(),
            quoting::string(self.partition.to_string())
        );
        let settings = [
            ("optimize_throw_if_noop", "1".to_owned()),
            ("alter_sync", "2".to_owned()),
        ];
        self.connection
            .execute(&statement, &settings, PATIENCE)
            .await
    }

    /// Waits until no merge of the month is running.
    async fn wait_for_merges(&self, table: &TableInfo, phase: &Phase) -> Result<Parts, Error> {
        let name = format!("{}.{}", table.database, table.name);
        let mut failures = 0;
        loop {
            let looked = async {
                let merging = self.merging(table).await?;
                Ok::<_, RequestError>((merging, self.parts(table).await?))
            };
            match looked.await {
                Ok((merging, parts)) if merging.merges == 0 => return Ok(parts),
                Ok((merging, _)) => phase.advance_to(merging.rows_read),
                Err(error) => {
                    failures += 1;
                    if failures > FAILURES {
                        return Err(Error::caused(format!("cannot merge {name}"), error));
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
            }
        }
    }

    /// Shows the merge's progress until dropped.
    async fn show(&self, table: &TableInfo, phase: &Phase) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // Ignore errors: the merge itself reports what is wrong.
            if let Ok(merging) = self.merging(table).await {
                phase.advance_to(merging.rows_read);
            }
        }
    }

    async fn merging(&self, table: &TableInfo) -> Result<Merging, RequestError> {
        let query = format!(
            "SELECT count() AS merges, sum(rows_read) AS rows_read FROM system.merges \
             WHERE {} AND partition_id = {}",
            is_table(table),
            quoting::string(self.partition.to_string())
        );
        let rows = self.connection.rows::<Merging>(&query).await?;
        Ok(rows.into_iter().next().unwrap_or(Merging {
            merges: 0,
            rows_read: 0,
        }))
    }

    async fn parts(&self, table: &TableInfo) -> Result<Parts, RequestError> {
        let query = format!(
            "SELECT sum(rows) AS rows, count() AS parts, toUInt64(min(level)) AS least_level \
             FROM system.parts WHERE active AND {} AND partition_id = {}",
            is_table(table),
            quoting::string(self.partition.to_string())
        );
        let rows = self.connection.rows::<Parts>(&query).await?;
        Ok(rows.into_iter().next().unwrap_or(Parts {
            rows: 0,
            parts: 0,
            least_level: 0,
        }))
    }
}

fn is_table(table: &TableInfo) -> String {
    format!(
        "database = {} AND table = {}",
        quoting::string(&table.database),
        quoting::string(&table.name)
    )
}
