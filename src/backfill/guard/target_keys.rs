//! Reads existing target rows as hashes into the local store.
//!
//! The target is sorted by minute and trace, a segment by type and id, so a segment's rows are
//! scattered over its project's days. Keys are therefore read by day, each day once and in the
//! order segments need them, rather than per segment.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use clickhouse::Row;
use serde::Deserialize;
use tokio::task::block_in_place;

use super::core_view::CoreView;
use super::row_hash::{KeyParts, microseconds};
use super::target::{BY_MONTH, COLUMNS, EVENT, Extent, TargetMonth};
use crate::backfill::block_stream::BlockStream;
use crate::backfill::error::WorkError;
use crate::clickhouse::{
    ON_DISK_FROM_BYTES, RequestError, Statement, TABLE_TIMEOUT, TableInfo, quoting,
};
use crate::native::{FixedCursor, NativeError};
use crate::partition::Day;
use crate::state::counts::{OwnRows, TargetState};
use crate::trace_store::{Against, RowKey, SortedWriter, TargetRow, TraceStore};

/// Approximate number of target rows whose keys one statement sorts.
const ROWS_PER_QUERY: u64 = 4_000_000;
/// Maximum keys per block, at 31 bytes each.
const BLOCK_ROWS: usize = 32_768;

/// The condition for a backfill's rows that count as existing.
fn counts_as_there(own_rows: OwnRows) -> Option<String> {
    match own_rows {
        OwnRows::Keep => None,
        OwnRows::KeepAfterBlock(block) => Some(format!("{EVENT}._block_number > {block}")),
        OwnRows::Rewrite => Some("0".to_owned()),
    }
}

#[derive(Row, Deserialize)]
struct Count {
    count: u64,
}

impl TargetMonth {
    /// Inspects the target. `until` applies to changed rows while there are live ones; `rewrite`
    /// means a backfill's rows are written again.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects a query or cannot be reached.
    pub(crate) async fn look(
        &self,
        until: i64,
        rewrite: bool,
    ) -> Result<TargetState, RequestError> {
        self.connection.catch_up(&self.table).await?;
        let rows = self.count(&self.share_condition()).await?;
        let has_live_rows = self.has_live_rows().await?;
        let own_rows = match rewrite && rows > 0 {
            true => match self.last_block(&self.table).await? {
                Some(block) => OwnRows::KeepAfterBlock(block),
                None => OwnRows::Rewrite,
            },
            false => OwnRows::Keep,
        };
        let mut view_blocks = BTreeMap::new();
        if let OwnRows::KeepAfterBlock(_) = own_rows {
            for view in CoreView::all(&self.connection, &self.table).await? {
                if let Some(block) = self.last_block(&view.table).await? {
                    view_blocks.insert(view.table.qualified_name(), block);
                }
            }
        }
        Ok(TargetState {
            rows,
            has_live_rows,
            until: has_live_rows.then_some(until),
            own_rows,
            view_blocks,
            keys_loaded: false,
        })
    }

    /// Number of rows of the share, including unmerged versions and live rows.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub(crate) async fn rows_of_share(&self) -> Result<u64, RequestError> {
        self.connection.catch_up(&self.table).await?;
        self.count(&self.share_condition()).await
    }

    async fn count(&self, condition: &str) -> Result<u64, RequestError> {
        let query = format!(
            "SELECT count() AS count FROM {} AS {EVENT} WHERE {condition}",
            self.table.qualified_name()
        );
        let rows = self.connection.rows_within::<Count>(&query, TABLE_TIMEOUT);
        Ok(rows.await?.iter().map(|row| row.count).sum())
    }

    /// Whether the target has any live rows.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects a query or cannot be reached.
    pub(crate) async fn has_live_rows(&self) -> Result<bool, RequestError> {
        if self.table.column("source").is_none() {
            return Ok(false);
        }
        let query = format!(
            "SELECT count() AS count FROM (SELECT 1 FROM {} AS {EVENT} WHERE {} LIMIT 1)",
            self.table.qualified_name(),
            self.is_live()
        );
        let rows = self.connection.rows_within::<Count>(&query, TABLE_TIMEOUT);
        Ok(rows.await?.iter().any(|row| row.count > 0))
    }

    /// The month's last block number: this run wrote everything after it. `None` if the table does
    /// not keep block numbers.
    async fn last_block(&self, table: &TableInfo) -> Result<Option<u64>, RequestError> {
        if !table.keeps_block_numbers || table.partition_key != BY_MONTH {
            return Ok(None);
        }
        let query = format!(
            "SELECT max({EVENT}._block_number) AS count FROM {} AS {EVENT} \
             WHERE {EVENT}._partition_id = {}",
            table.qualified_name(),
            quoting::string(self.share.partition.to_string())
        );
        let rows = self.connection.rows_within::<Count>(&query, TABLE_TIMEOUT);
        let last = rows.await?.iter().map(|row| row.count).max();
        Ok(Some(last.unwrap_or(0)))
    }

    /// Rows of the month beyond the first per key, if one of them is a backfill's: the larger count
    /// of the target and the tables that views fill from it.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects a query or cannot be reached.
    pub(crate) async fn rows_to_merge(&self) -> Result<u64, RequestError> {
        let mut most = self.rows_to_merge_in(&self.table).await?;
        for view in CoreView::all(&self.connection, &self.table).await? {
            most = most.max(self.rows_to_merge_in(&view.table).await?);
        }
        Ok(most)
    }

    async fn rows_to_merge_in(&self, table: &TableInfo) -> Result<u64, RequestError> {
        let [_, _, hash, check] = COLUMNS.row_key("e.start_time");
        let query = format!(
            "SELECT toUInt64(sum(rows - 1)) AS count FROM (SELECT count() AS rows FROM {} AS \
             {EVENT} WHERE {} GROUP BY {hash}, {check} HAVING rows > 1 AND min({}) = 0) SETTINGS \
             max_bytes_before_external_group_by = {ON_DISK_FROM_BYTES}",
            table.qualified_name(),
            self.days_condition(&self.share.days()),
            self.is_live(),
        );
        let rows = self.connection.rows_within::<Count>(&query, TABLE_TIMEOUT);
        Ok(rows.await?.iter().map(|row| row.count).sum())
    }

    /// The days to write, grouped so that one statement sorts a suitable number of `rows`.
    pub(crate) fn days_to_read(&self, rows: u64) -> Vec<RangeInclusive<Day>> {
        let days: Vec<Day> = self.share.days().collect();
        let per_day = (rows / days.len().max(1) as u64).max(1);
        let together = (ROWS_PER_QUERY / per_day).clamp(1, days.len() as u64);
        days.chunks(usize::try_from(together).unwrap_or(1))
            .map(|days| days[0]..=days[days.len() - 1])
            .collect()
    }

    /// Stores the keys of an extent's rows that count as existing. Returns their number.
    ///
    /// # Errors
    /// [`WorkError`] if the server or the store fails, or on a signal. May be repeated for the same
    /// extent.
    pub(crate) async fn load(
        &self,
        extent: &Extent,
        own_rows: OwnRows,
        against: Against,
        store: &TraceStore,
    ) -> Result<u64, WorkError> {
        // Rows written through another replica count as existing.
        self.connection.catch_up(&self.table).await?;
        let also = counts_as_there(own_rows).map_or_else(String::new, |condition| {
            format!(" AND ({} OR {condition})", self.is_live())
        });
        let key = COLUMNS.row_key("e.start_time");
        let [day, place, hash, check] = &key;
        let query = format!(
            "SELECT c0, c1, c2, c3, c4, c5 FROM (SELECT CAST({day}, 'UInt16') AS c0, \
             CAST({place}, 'UInt64') AS c1, CAST({hash}, 'UInt64') AS c2, CAST({check}, 'UInt32') \
             AS c3, CAST({}, 'Int64') AS c4, CAST({}, 'UInt8') AS c5 FROM {} AS {EVENT} WHERE \
             {}{also}) ORDER BY c0, c1, c2, c3",
            microseconds("e.event_ts"),
            self.is_live(),
            self.table.qualified_name(),
            self.condition(extent),
        );
        let mut keys = Keys {
            writer: SortedWriter::new(store, against, format!("{:x}", fastrand::u64(..))),
            pending: None,
        };
        self.for_each_block(&query, |block| keys.take(block))
            .await?;
        block_in_place(|| keys.finish())
    }

    /// Reads hashes in small blocks. The server sorts large results on its disk.
    pub(super) async fn for_each_block(
        &self,
        query: &str,
        mut take: impl FnMut(&crate::native::Block) -> Result<(), WorkError>,
    ) -> Result<(), WorkError> {
        let statement = Statement::new(query, BLOCK_ROWS).of_a_table();
        let (connection, most) = (&self.connection, self.max_block_bytes);
        let mut blocks =
            BlockStream::open(connection, &statement, most, &self.pool, &self.shutdown)?;
        while let Some(block) = blocks.next().await? {
            block_in_place(|| take(&block))?;
        }
        Ok(())
    }
}

/// Keys arriving in order. Of several rows per key, the latest wins.
struct Keys<'a> {
    writer: SortedWriter<'a>,
    pending: Option<(RowKey, TargetRow)>,
}

impl Keys<'_> {
    fn take(&mut self, block: &crate::native::Block) -> Result<(), WorkError> {
        let mut days = FixedCursor::<2>::new(block.values(0));
        let mut places = FixedCursor::<8>::new(block.values(1));
        let mut hashes = FixedCursor::<8>::new(block.values(2));
        let mut checks = FixedCursor::<4>::new(block.values(3));
        let mut event_ts = FixedCursor::<8>::new(block.values(4));
        let mut is_live = FixedCursor::<1>::new(block.values(5));
        for _ in 0..block.rows {
            let parts = KeyParts {
                day: u16::from_le_bytes(days.next_value()?),
                place: u64::from_le_bytes(places.next_value()?),
                hash: u64::from_le_bytes(hashes.next_value()?),
                check: u32::from_le_bytes(checks.next_value()?),
            };
            let row = TargetRow {
                event_ts: i64::from_le_bytes(event_ts.next_value()?),
                is_live: is_live.next_value()? != [0],
            };
            self.add(parts.row_key(), row)?;
        }
        Ok(())
    }

    fn add(&mut self, key: RowKey, row: TargetRow) -> Result<(), WorkError> {
        match &mut self.pending {
            Some((last, latest)) if *last == key => {
                let order = |row: &TargetRow| (row.event_ts, row.is_live);
                if order(&row) > order(latest) {
                    *latest = row;
                }
            }
            Some((last, _)) if *last > key => {
                return Err(NativeError::corrupt("keys arrived out of order").into());
            }
            _ => {
                self.write()?;
                self.pending = Some((key, row));
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), WorkError> {
        if let Some((key, row)) = self.pending.take() {
            self.writer.put(&key, &row.encode())?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<u64, WorkError> {
        self.write()?;
        Ok(self.writer.finish()?)
    }
}
