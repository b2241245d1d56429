//! Reads traces from ClickHouse into the store, one or more days at a time.
//!
//! A day is read in key order, with all versions of every trace, and the day's latest version is
//! kept. `FINAL` does not help: it hides deleted traces, which the store must know because an older
//! version may be on another day.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_bytes::Bytes as Text;

use crate::backfill::block_stream::{BlockStream, catch_up};
use crate::backfill::error::WorkError;
use crate::clickhouse::{Connection, Statement, TableInfo, quoting};
use crate::inspect::statements::{KEYS, TRACE, TRACE_COLUMNS, trace_items};
use crate::mapping::{Mapping, SelectItem};
use crate::memory::Budget;
use crate::memory::buffer_pool::BufferPool;
use crate::native::{ArrayCursor, Block, FixedCursor, NativeError, StringCursor};
use crate::partition::Day;
use crate::partition::Partition;
use crate::shutdown::Shutdown;
use crate::trace_store::{DayWriter, SeenTraces, StoreError, TEXTS, TraceRecord, TraceStore, key};

/// Maximum rows per block of traces, unless they turn out to be large.
pub(crate) const BLOCK_ROWS: usize = 8_192;

/// Rows per query for small days. Each query reads a granule or two too many per project and part.
const ROWS_PER_QUERY: u64 = 500_000;
/// Maximum days per query, each with an open file.
const DAYS_PER_QUERY: u64 = 8;

/// How many days to read per query, if `days` have `rows`.
pub(crate) fn days_per_query(rows: u64, days: usize) -> usize {
    let rows_per_day = (rows / days.max(1) as u64).max(1);
    (ROWS_PER_QUERY / rows_per_day).clamp(1, DAYS_PER_QUERY) as usize
}

/// What loading some days needs.
pub(crate) struct TraceSource<'a> {
    /// The server.
    pub connection: &'a Connection,
    /// The table `traces`.
    pub table: &'a TableInfo,
    /// The trace attributes that events take.
    pub mapping: &'a Mapping,
    /// Memory limits for blocks.
    pub budget: Budget,
    /// Block buffers.
    pub pool: BufferPool,
    /// Maximum rows per query, for a sample. `None` reads all.
    pub most_rows: Option<u64>,
}

/// The result of loading a day.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LoadedDay {
    /// Rows read, including all versions.
    pub rows_read: u64,
    /// Traces stored that are not deleted.
    pub traces: u64,
}

impl TraceSource<'_> {
    /// Loads consecutive days of one month into the store. Requests up to `block_rows` rows per
    /// block. Returns each day's result.
    ///
    /// # Errors
    /// [`WorkError`] if the server or the store fails, or on a signal. May be repeated for the same
    /// days.
    pub(crate) async fn load_days(
        &self,
        store: &TraceStore,
        days: RangeInclusive<Day>,
        block_rows: usize,
        seen: &mut SeenTraces,
        on_rows: &(dyn Fn(u64) + Sync),
        shutdown: &Shutdown,
    ) -> Result<BTreeMap<Day, LoadedDay>, WorkError> {
        let statement = Statement::new(self.query(&days), block_rows)
            .in_bytes(self.budget.preferred_block_bytes)
            // Parts are sorted by this key, so merge them instead of sorting.
            .with("optimize_read_in_order", 1);
        let most = self.budget.load_block_bytes;
        catch_up(self.connection, self.table, shutdown).await?;
        let mut blocks =
            BlockStream::open(self.connection, &statement, most, &self.pool, shutdown)?;
        let mut latest = LatestVersions::new(store, days)?;
        while let Some(block) = blocks.next().await? {
            tokio::task::block_in_place(|| latest.take_block(&block, seen))?;
            on_rows(block.rows as u64);
        }
        tokio::task::block_in_place(|| latest.finish(seen))
    }

    fn query(&self, days: &RangeInclusive<Day>) -> String {
        let limit = self
            .most_rows
            .map_or_else(String::new, |rows| format!(" LIMIT {rows}"));
        // The ARRAY JOIN leaves the rows unchanged. It splits blocks to max_block_size: the read
        // below it yields granules of up to 10 MiB.
        format!(
            "SELECT {} FROM (SELECT * FROM {} AS {TRACE} WHERE {TRACE}._partition_id = {} \
             AND toDate({TRACE}.timestamp) BETWEEN toDate({}) AND toDate({}) \
             ORDER BY {TRACE}.project_id, toDate({TRACE}.timestamp), {TRACE}.id{limit}) AS {TRACE} \
             ARRAY JOIN [1] AS one",
            SelectItem::list(&trace_items(self.mapping)),
            self.table.qualified_name(),
            quoting::string(Partition::id_of(*days.start())),
            days.start(),
            days.end(),
        )
    }
}

/// Keeps each trace's latest version per day. A trace's versions arrive consecutively, possibly
/// across blocks.
struct LatestVersions<'a> {
    first_day: Day,
    days: Vec<DayInWork<'a>>,
    pending: Option<Pending>,
}

/// A day being loaded.
struct DayInWork<'a> {
    writer: DayWriter<'a>,
    loaded: LoadedDay,
}

struct Pending {
    /// Index of its day among those being loaded.
    day: usize,
    key: Vec<u8>,
    record: Vec<u8>,
    event_ts: i64,
    is_deleted: bool,
}

impl<'a> LatestVersions<'a> {
    fn new(store: &'a TraceStore, days: RangeInclusive<Day>) -> Result<Self, WorkError> {
        let (first_day, at_once) = (*days.start(), days.len());
        let in_work = days.map(|day| {
            Ok(DayInWork {
                writer: DayWriter::new(store, day, at_once)?,
                loaded: LoadedDay::default(),
            })
        });
        Ok(Self {
            first_day,
            days: in_work.collect::<Result<_, StoreError>>()?,
            pending: None,
        })
    }

    /// Index of a day among those being loaded.
    fn index_of(&self, day: Day) -> Result<usize, NativeError> {
        let index = usize::from(day.wrapping_sub(self.first_day));
        match index < self.days.len() {
            true => Ok(index),
            false => Err(NativeError::corrupt(format!(
                "a trace of day {day} arrived, which was not requested"
            ))),
        }
    }

    fn take_block(&mut self, block: &Block, seen: &mut SeenTraces) -> Result<(), WorkError> {
        let mut rows = TraceRows::new(block)?;
        let mut key = Vec::new();
        for _ in 0..block.rows {
            let TraceRow {
                day,
                project_id,
                trace_id,
                record,
            } = rows.next_row()?;
            let day = self.index_of(day)?;
            self.days[day].loaded.rows_read += 1;
            key.clear();
            key::encode(&mut key, project_id, trace_id);
            match &mut self.pending {
                Some(pending) if pending.key == key && pending.day == day => {
                    // Of versions with equal times, the one that arrives later was written later.
                    if record.event_ts >= pending.event_ts {
                        pending.replace(&record)?;
                    }
                }
                _ => {
                    let recycled = self.write_pending(seen)?;
                    self.pending = Some(recycled.filled(day, &key, &record)?);
                }
            }
        }
        Ok(())
    }

    /// Writes the finished trace and returns its buffers for reuse.
    fn write_pending(&mut self, seen: &mut SeenTraces) -> Result<Pending, WorkError> {
        let Some(pending) = self.pending.take() else {
            return Ok(Pending {
                day: 0,
                key: Vec::new(),
                record: Vec::new(),
                event_ts: 0,
                is_deleted: false,
            });
        };
        let day = &mut self.days[pending.day];
        day.writer.put(&pending.key, &pending.record, seen)?;
        day.loaded.traces += u64::from(!pending.is_deleted);
        Ok(pending)
    }

    fn finish(mut self, seen: &mut SeenTraces) -> Result<BTreeMap<Day, LoadedDay>, WorkError> {
        self.write_pending(seen)?;
        let mut loaded = BTreeMap::new();
        for (day, in_work) in (self.first_day..).zip(self.days) {
            in_work.writer.finish()?;
            loaded.insert(day, in_work.loaded);
        }
        Ok(loaded)
    }
}

impl Pending {
    fn filled(
        mut self,
        day: usize,
        key: &[u8],
        record: &TraceRecord<'_>,
    ) -> Result<Self, WorkError> {
        self.day = day;
        self.key.clear();
        self.key.extend_from_slice(key);
        self.replace(record)?;
        Ok(self)
    }

    fn replace(&mut self, record: &TraceRecord<'_>) -> Result<(), WorkError> {
        self.event_ts = record.event_ts;
        self.is_deleted = record.is_deleted;
        record.encode(&mut self.record)?;
        Ok(())
    }
}

/// A version of a trace.
pub(crate) struct TraceRow<'a> {
    /// The day it started on.
    pub(crate) day: Day,
    /// `project_id`
    pub(crate) project_id: &'a [u8],
    /// `id`
    pub(crate) trace_id: &'a [u8],
    /// The attributes to store.
    pub(crate) record: TraceRecord<'a>,
}

/// The rows of a block of traces.
pub(crate) struct TraceRows<'a> {
    project_ids: StringCursor<'a>,
    trace_ids: StringCursor<'a>,
    days: FixedCursor<'a, 2>,
    event_ts: FixedCursor<'a, 8>,
    flags: [FixedCursor<'a, 1>; 3],
    texts: [StringCursor<'a>; TEXTS],
    arrays: [(ArrayCursor<'a>, StringCursor<'a>); 3],
}

impl<'a> TraceRows<'a> {
    /// Reads a block with the columns of [`trace_items`].
    pub(crate) fn new(block: &'a Block) -> Result<Self, NativeError> {
        if block.columns.len() != TRACE_COLUMNS {
            return Err(NativeError::corrupt(format!(
                "{} columns arrived instead of the {} requested",
                block.columns.len(),
                TRACE_COLUMNS
            )));
        }
        let text = |index| StringCursor::new(block.values(index));
        let flag = |index| FixedCursor::new(block.values(index));
        let array = |index| {
            let (lengths, elements) = ArrayCursor::new(block.values(index), block.rows)?;
            Ok::<_, NativeError>((lengths, StringCursor::new(elements)))
        };
        Ok(Self {
            project_ids: text(0),
            trace_ids: text(1),
            days: FixedCursor::new(block.values(2)),
            event_ts: FixedCursor::new(block.values(3)),
            flags: [flag(KEYS - 1), flag(KEYS), flag(KEYS + 1)],
            texts: std::array::from_fn(|place| text(KEYS + 2 + place)),
            arrays: [
                array(TRACE_COLUMNS - 3)?,
                array(TRACE_COLUMNS - 2)?,
                array(TRACE_COLUMNS - 1)?,
            ],
        })
    }

    /// The next row. Call it once per row of the block.
    pub(crate) fn next_row(&mut self) -> Result<TraceRow<'a>, NativeError> {
        let day = Day::from_le_bytes(self.days.next_value()?);
        let project_id = self.project_ids.next_value()?;
        let trace_id = self.trace_ids.next_value()?;
        let event_ts = i64::from_le_bytes(self.event_ts.next_value()?);
        let mut flags = [false; 3];
        for (flag, column) in flags.iter_mut().zip(&mut self.flags) {
            *flag = column.next_value()? != [0];
        }
        let mut texts = [Text::new(&[]); TEXTS];
        for (text, column) in texts.iter_mut().zip(&mut self.texts) {
            *text = Text::new(column.next_value()?);
        }
        let [tags, names, values] = &mut self.arrays;
        let tags = next_array(tags)?;
        let names = next_array(names)?;
        let values = next_array(values)?;
        let [is_deleted, public, bookmarked] = flags;
        let row = |record| TraceRow {
            day,
            project_id,
            trace_id,
            record,
        };
        if is_deleted {
            return Ok(row(TraceRecord::deleted(event_ts, day)));
        }
        Ok(row(TraceRecord {
            event_ts,
            is_deleted,
            day,
            public,
            bookmarked,
            texts,
            tags,
            metadata: names.into_iter().zip(values).collect(),
        }))
    }
}

fn next_array<'a>(
    (lengths, elements): &mut (ArrayCursor<'a>, StringCursor<'a>),
) -> Result<Vec<&'a Text>, NativeError> {
    (0..lengths.next_length()?)
        .map(|_| elements.next_value().map(Text::new))
        .collect()
}
