//! Finds the spans of dataset run items, across all partitions. An item points at a span or at a
//! whole trace, and everything below that span belongs to the item too.
//!
//! Traces are processed several thousand at a time, in id order: first the traces with an item and
//! a row in the partition, then their items, then ids and parents of all their spans in any month.

use std::collections::BTreeMap;

use clickhouse::{RowOwned, RowRead};

use crate::backfill::block_stream::{BlockStream, catch_up};
use crate::inspect::share::is_of_share;
use crate::inspect::statements::items_query;
use crate::state::counts::ExperimentCounts;
use tokio::task::block_in_place;

use super::items;
use super::live_items::{self, LiveItems};
use super::pointers::Pointers;
use super::traces::{Trace, condition, key_of};
use super::tree::Spans;
use crate::backfill::error::WorkError;
use crate::cli::options::Options;
use crate::clickhouse::{
    Connection, ON_DISK_FROM_BYTES, Statement, TABLE_TIMEOUT, TableInfo, quoting,
};
use crate::error::Error;
use crate::inspect::Inspected;
use crate::mapping::Source;
use crate::memory::buffer_pool::BufferPool;
use crate::native::{Block, FixedCursor, StringCursor};
use crate::partition::ShareOfMonth;
use crate::shutdown::Shutdown;
use crate::trace_store::{ExperimentWriter, TraceStore};

/// Traces per batch. Each batch reads the partition's ids, all items of its projects and the ids of
/// all observations. Its ids make a statement of 3 MiB, and its items take about 20 MiB of memory.
pub(crate) const TRACES_AT_ONCE: usize = 40_000;

/// Where to read from.
pub(crate) struct ExperimentSource<'a> {
    /// The server.
    pub connection: &'a Connection,
    /// `dataset_run_items_rmt`
    pub items: &'a TableInfo,
    /// The source tables, `observations` first.
    pub sources: Vec<(Source, &'a TableInfo)>,
    /// `observations`
    pub observations: &'a TableInfo,
    /// The target, if live spans in it may carry items.
    pub live_target: Option<&'a TableInfo>,
    /// The share of the month to process.
    pub share: ShareOfMonth,
    /// Maximum block size in bytes, and the limit for the span ids of one trace.
    pub max_block_bytes: usize,
    /// The block size requested from the server.
    pub preferred_block_bytes: usize,
    /// Block buffers.
    pub pool: BufferPool,
    /// Signals a request to stop.
    pub shutdown: &'a Shutdown,
}

impl<'a> ExperimentSource<'a> {
    /// For an inspected month, ignoring live spans, with its own buffers.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if the items table was not inspected.
    pub(crate) fn new(
        inspected: &'a Inspected,
        options: &Options,
        connection: &'a Connection,
        shutdown: &'a Shutdown,
    ) -> Result<Self, Error> {
        let items = inspected
            .dataset_items
            .as_ref()
            .ok_or_else(|| Error::failed("the table of dataset run items was not inspected"))?;
        let sources = options.subject.sources().into_iter();
        let budget = options.budget;
        Ok(Self {
            connection,
            items,
            sources: sources
                .map(|source| match source {
                    Source::Observations => (source, &inspected.observations),
                    Source::Traces => (source, &inspected.traces),
                })
                .collect(),
            observations: &inspected.observations,
            live_target: None,
            share: inspected.share,
            max_block_bytes: budget.load_block_bytes,
            preferred_block_bytes: budget.preferred_block_bytes,
            pool: budget.pool(),
            shutdown,
        })
    }

    /// Counts traces with an item and a row in the share.
    ///
    /// # Errors
    /// [`WorkError::Request`] if the server rejects the query or cannot be reached.
    pub(crate) async fn count_traces(&self) -> Result<u64, WorkError> {
        let query = format!(
            "SELECT uniq(project_id, trace_id) FROM ({})",
            self.ids_with_items(None)
        );
        let counts: Vec<u64> = self.rows(&query).await?;
        Ok(counts.first().copied().unwrap_or(0))
    }

    /// The next traces after `last` with an item and a row in the share, in id order. Empty at the
    /// end.
    ///
    /// # Errors
    /// [`WorkError::Request`] if the server rejects the query or cannot be reached.
    pub(crate) async fn traces(&self, last: Option<&Trace>) -> Result<Vec<Trace>, WorkError> {
        let sources = self.sources.iter().map(|(_, table)| *table);
        for table in sources.chain([self.items]) {
            catch_up(self.connection, table, self.shutdown).await?;
        }
        let query = format!(
            "SELECT project_id, trace_id FROM ({}) GROUP BY project_id, trace_id \
             ORDER BY project_id, trace_id LIMIT {TRACES_AT_ONCE} \
             SETTINGS max_bytes_before_external_group_by = {ON_DISK_FROM_BYTES}",
            self.ids_with_items(last)
        );
        self.rows(&query).await
    }

    /// The rows of a small result, or an error on a signal.
    async fn rows<T: RowOwned + RowRead>(&self, query: &str) -> Result<Vec<T>, WorkError> {
        let rows = self.connection.rows_within(query, TABLE_TIMEOUT);
        tokio::select! {
            rows = rows => Ok(rows?),
            _ = self.shutdown.requested() => Err(WorkError::Interrupted),
        }
    }

    /// Project and trace of each row in the share, after `last`, whose trace has an item.
    fn ids_with_items(&self, last: Option<&Trace>) -> String {
        let of_source = self.sources.iter().map(|(source, table)| {
            let project = format!("{}.project_id", source.alias());
            let trace = format!("{}.{}", source.alias(), source.trace_column());
            let after = last.map_or_else(String::new, |last| {
                let last_project = quoting::string(&last.project_id);
                let last_trace = quoting::string(&last.trace_id);
                format!(
                    " AND ({project} > {last_project} \
                     OR ({project} = {last_project} AND {trace} > {last_trace}))"
                )
            });
            format!(
                "SELECT CAST({project}, 'String') AS project_id, CAST({trace}, 'String') AS \
                 trace_id FROM {} AS {alias} WHERE {} AND {trace} != ''{after} AND ({project}, \
                 {trace}) IN (SELECT i.project_id, i.trace_id FROM {} AS i FINAL)",
                table.qualified_name(),
                is_of_share(*source, self.share),
                self.items.qualified_name(),
                alias = source.alias(),
            )
        });
        let of_sources: Vec<String> = of_source.collect();
        of_sources.join(" UNION ALL ")
    }

    /// Finds the items of some traces and the spans of each, and stores them. May be repeated for
    /// the same traces.
    ///
    /// # Errors
    /// [`WorkError`] if the server or the trace store fails, a trace is too large, or on a signal.
    pub(crate) async fn keep(
        &self,
        traces: &[Trace],
        block_rows: usize,
        store: &TraceStore,
    ) -> Result<ExperimentCounts, WorkError> {
        let mut writer = ExperimentWriter::new(store);
        let mut pointers: BTreeMap<Vec<u8>, Pointers> = traces
            .iter()
            .map(|trace| (key_of(trace), Pointers::new()))
            .collect();
        let mut counts = ExperimentCounts::default();
        for table in [self.items, self.observations] {
            catch_up(self.connection, table, self.shutdown).await?;
        }
        let live = self.live_items(traces, block_rows).await?;
        let condition = condition("i", "trace_id", traces);
        let query = items_query(self.items, &condition);
        self.for_each_block(&query, block_rows, |block| {
            counts.items += items::take(block, &mut pointers, &live, &mut writer)?;
            Ok(())
        })
        .await?;
        let mut spans = Spans::new(self.max_block_bytes);
        self.for_each_block(&self.spans_query(traces), block_rows, |block| {
            let mut columns = [0, 1, 2, 3].map(|index| StringCursor::new(block.values(index)));
            let mut deleted = FixedCursor::<1>::new(block.values(4));
            for _ in 0..block.rows {
                let mut row = [&b""[..]; 4];
                for (value, column) in row.iter_mut().zip(&mut columns) {
                    *value = column.next_value()?;
                }
                let [project, trace, id, parent] = row;
                if !spans.is_of(project, trace) {
                    counts += spans.finish(&mut pointers, &mut writer)?;
                    spans.begin(project, trace, &pointers);
                }
                spans.add(id, parent, deleted.next_value()? != [0])?;
            }
            Ok(())
        })
        .await?;
        counts += spans.finish(&mut pointers, &mut writer)?;
        // The remaining traces have no observations: only their root spans can belong to an item.
        for trace in traces {
            spans.begin(&trace.project_id, &trace.trace_id, &pointers);
            counts += spans.finish(&mut pointers, &mut writer)?;
        }
        block_in_place(|| writer.finish())?;
        Ok(counts)
    }

    /// The items that live spans of these traces carry.
    async fn live_items(
        &self,
        traces: &[Trace],
        block_rows: usize,
    ) -> Result<LiveItems, WorkError> {
        let mut live = LiveItems::default();
        if let Some(target) = self.live_target {
            let query = live_items::query(target, traces);
            self.for_each_block(&query, block_rows, |block| live.add(block))
                .await?;
        }
        Ok(live)
    }

    /// The latest version of each span: project, trace, id, parent and whether it is deleted,
    /// grouped by trace.
    fn spans_query(&self, traces: &[Trace]) -> String {
        // Of versions written at the same time, the latest day's wins.
        let version = "(o.event_ts, toDate(o.start_time))";
        format!(
            "SELECT project, trace, span, parent, deleted FROM (\
             SELECT CAST(o.project_id, 'String') AS project, CAST(o.trace_id, 'String') AS trace, \
             CAST(o.id, 'String') AS span, \
             CAST(argMax(ifNull(o.parent_observation_id, ''), {version}), 'String') AS parent, \
             CAST(argMax(o.is_deleted, {version}), 'UInt8') AS deleted \
             FROM {} AS o WHERE {} GROUP BY project, trace, span) \
             ORDER BY project, trace",
            self.observations.qualified_name(),
            condition("o", "trace_id", traces),
        )
    }

    async fn for_each_block(
        &self,
        query: &str,
        block_rows: usize,
        mut take: impl FnMut(&Block) -> Result<(), WorkError>,
    ) -> Result<(), WorkError> {
        let statement = Statement::new(query, block_rows)
            .in_bytes(self.preferred_block_bytes)
            .of_a_table();
        let most = self.max_block_bytes;
        let mut blocks =
            BlockStream::open(self.connection, &statement, most, &self.pool, self.shutdown)?;
        while let Some(block) = blocks.next().await? {
            block_in_place(|| take(&block))?;
        }
        Ok(())
    }
}
