//! Finds traces that already have a root span and need none of ours: a live span with its own id,
//! or an observation with the root span's id.
//!
//! v4 groups by span id, while the target's sort key includes the start time. A root span next to
//! an observation with the same id would be one span with two rows, both counted.

use std::ops::RangeInclusive;

use tokio::task::block_in_place;

use super::row_hash::{RowColumns, for_each_key};
use super::target::{COLUMNS, TargetMonth};
use crate::backfill::block_stream::catch_up;
use crate::backfill::error::WorkError;
use crate::clickhouse::{ON_DISK_FROM_BYTES, TableInfo, quoting};
use crate::native::Block;
use crate::partition::Day;
use crate::trace_store::{Against, HashKey, Root, SortedWriter, TraceStore};

/// What to read.
pub(crate) struct RootScan<'a> {
    /// Access to the target and the rest of its server.
    pub target: &'a TargetMonth,
    /// `observations`
    pub observations: &'a TableInfo,
    /// The month, `YYYYMM`.
    pub partition_id: &'a str,
    /// Days to search for live roots, if the target has live rows.
    pub live_days: Option<RangeInclusive<Day>>,
}

impl RootScan<'_> {
    /// Replaces the stored roots with those found.
    ///
    /// # Errors
    /// [`WorkError`] if the server or the store fails, or on a signal. May be repeated.
    pub(crate) async fn run(&self, store: &TraceStore) -> Result<(), WorkError> {
        block_in_place(|| store.clear(Against::Roots))?;
        let (connection, shutdown) = (&self.target.connection, &self.target.shutdown);
        for table in [self.observations, &self.target.table] {
            catch_up(connection, table, shutdown).await?;
        }
        self.load(&self.of_observations(), Root::Observation, store)
            .await?;
        if let Some(days) = &self.live_days {
            // Overwrites the others: a live root is the better reason.
            self.load(&self.live(days), Root::Live, store).await?;
        }
        Ok(())
    }

    /// Observations with their trace's root span id, unless deleted. Few ids have that prefix, so
    /// the query reads little besides the ids.
    fn of_observations(&self) -> String {
        let [hash, check] = RowColumns {
            project: "o.project_id",
            trace: "o.trace_id",
            span: "o.id",
        }
        .trace_key();
        format!(
            "SELECT CAST({hash}, 'UInt64') AS c0, CAST({check}, 'UInt32') AS c1 FROM {} AS o \
             WHERE o._partition_id = {} AND startsWith(o.id, 't-') \
             AND o.id = concat('t-', o.trace_id) \
             GROUP BY c0, c1 HAVING argMax(o.is_deleted, o.event_ts) = 0 ORDER BY c0, c1 \
             SETTINGS max_bytes_before_external_group_by = {ON_DISK_FROM_BYTES}",
            self.observations.qualified_name(),
            quoting::string(self.partition_id),
        )
    }

    /// Live spans without a parent and with another id.
    fn live(&self, days: &RangeInclusive<Day>) -> String {
        let [hash, check] = COLUMNS.trace_key();
        format!(
            "SELECT c0, c1 FROM (SELECT CAST({hash}, 'UInt64') AS c0, \
             CAST({check}, 'UInt32') AS c1 FROM {} AS e \
             WHERE {} AND {} AND e.parent_span_id = '' AND e.is_deleted = 0 \
             AND e.span_id != concat('t-', e.trace_id)) ORDER BY c0, c1",
            self.target.table.qualified_name(),
            self.target.days_condition(days),
            self.target.is_live(),
        )
    }

    async fn load(&self, query: &str, root: Root, store: &TraceStore) -> Result<(), WorkError> {
        let name = format!("{root:?}");
        let mut writer = SortedWriter::new(store, Against::Roots, name);
        let mut last: Option<HashKey> = None;
        self.target
            .for_each_block(query, |block: &Block| {
                for_each_key(block, |key| {
                    if last != Some(key) {
                        writer.put(&key, &root.encode())?;
                        last = Some(key);
                    }
                    Ok(())
                })
            })
            .await?;
        block_in_place(|| writer.finish())?;
        Ok(())
    }
}
