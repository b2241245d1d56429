//! Traces from ClickHouse into the trace store, one day at a time.
//!
//! A day is read in the order of its keys, all versions of every trace; the
//! latest is kept. `FINAL` is of no use here: it hides a deleted trace, and the
//! store has to know of it, because an older version may stand on another day.

use serde_bytes::Bytes as Text;

use crate::buffer_pool::BufferPool;
use crate::clickhouse::{Connection, TableInfo, sql};
use crate::error::WorkError;
use crate::mapping::Mapping;
use crate::memory::Budget;
use crate::native::{ArrayCursor, Block, BlockReader, FixedCursor, NativeError, StringCursor};
use crate::shutdown::Shutdown;
use crate::trace_store::{Day, DayWriter, SeenTraces, TraceRecord, TraceStore, key};

/// Most rows in one block of traces, unless they turn out to be large.
pub const BLOCK_ROWS: usize = 8_192;

/// What loading one day needs to know.
pub struct TraceSource<'a> {
    /// The server.
    pub connection: &'a Connection,
    /// The table `traces`.
    pub table: &'a TableInfo,
    /// The partition to read.
    pub partition_id: &'a str,
    /// Which attributes events take from traces.
    pub mapping: &'a Mapping,
    /// How much memory a block may take.
    pub budget: Budget,
    /// Buffers of blocks.
    pub pool: BufferPool,
}

/// What came of loading a day.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadedDay {
    /// Rows read, several versions of a trace included.
    pub rows_read: u64,
    /// Traces in the store that are not deleted.
    pub traces: u64,
}

impl TraceSource<'_> {
    /// Loads one day into the store; all of it, or nothing. Reads at most
    /// `block_rows` rows at a time.
    ///
    /// # Errors
    /// [`WorkError`] of whatever kind; the day can be loaded again.
    pub async fn load_day(
        &self,
        store: &TraceStore,
        day: Day,
        block_rows: usize,
        seen: &mut SeenTraces,
        on_rows: &(dyn Fn(u64) + Sync),
        shutdown: &Shutdown,
    ) -> Result<LoadedDay, WorkError> {
        let settings = [
            ("max_block_size", block_rows.to_string()),
            (
                "preferred_block_size_bytes",
                self.budget.preferred_block_bytes.to_string(),
            ),
            // With it, blocks are whole granules whatever is asked for.
            ("use_query_condition_cache", "0".to_owned()),
            // Parts are sorted by this key: merge them, do not sort.
            ("optimize_read_in_order", "1".to_owned()),
        ];
        let mut stream = self.connection.stream(&self.query(day), &settings)?;
        let mut reader = BlockReader::new(self.budget.load_block_bytes, &self.pool);
        let mut latest = LatestVersions {
            writer: DayWriter::new(store, day),
            pending: None,
            traces: 0,
        };
        let mut rows_read = 0;
        loop {
            let chunk = tokio::select! {
                chunk = stream.next_chunk() => chunk?,
                _ = shutdown.requested() => return Err(WorkError::Interrupted),
            };
            let Some(chunk) = chunk else { break };
            reader.push(&chunk);
            while let Some(block) = reader.next_block()? {
                tokio::task::block_in_place(|| latest.take_block(&block, seen))?;
                rows_read += block.rows as u64;
                on_rows(block.rows as u64);
            }
        }
        reader.finish()?;
        let traces = tokio::task::block_in_place(|| latest.finish(seen))?;
        Ok(LoadedDay { rows_read, traces })
    }

    fn query(&self, day: Day) -> String {
        // The ARRAY JOIN changes no row. It divides blocks to max_block_size: the
        // reading below it yields granules of up to 10 MiB.
        format!(
            "SELECT {} FROM (SELECT * FROM {} AS {TRACE} WHERE {TRACE}._partition_id = {} \
             AND toDate({TRACE}.timestamp) = toDate({day}) \
             ORDER BY {TRACE}.project_id, toDate({TRACE}.timestamp), {TRACE}.id) AS {TRACE} \
             ARRAY JOIN [1] AS one",
            select_items(self.mapping).join(", "),
            self.table.qualified_name(),
            sql::string(self.partition_id),
        )
    }
}

/// How the traces table is called inside the SELECT.
pub const TRACE: &str = "t";

/// The items of the SELECT list: the keys, then [`ATTRIBUTES`] in their order.
pub fn select_items(mapping: &Mapping) -> Vec<String> {
    let wanted = mapping.trace_columns();
    let keys = [
        "CAST(t.project_id, 'String')",
        "CAST(t.id, 'String')",
        "CAST(t.event_ts, 'DateTime64(6)')",
        "CAST(t.is_deleted, 'UInt8')",
    ];
    let attributes = ATTRIBUTES.iter().map(|attribute| {
        let expression = match wanted.contains(&attribute.column) {
            true => attribute.expression,
            false => attribute.otherwise,
        };
        format!("CAST({expression}, '{}')", attribute.data_type)
    });
    let expressions = keys.iter().map(|&key| key.to_owned()).chain(attributes);
    expressions
        .enumerate()
        .map(|(index, expression)| format!("{expression} AS c{index}"))
        .collect()
}

/// Something that events take from a trace.
struct Attribute {
    /// The column of `traces` it comes from.
    column: &'static str,
    /// The type in which it is read.
    data_type: &'static str,
    /// What it is read as.
    expression: &'static str,
    /// What is read where nothing is taken from that column.
    otherwise: &'static str,
}

const fn attribute(
    column: &'static str,
    data_type: &'static str,
    expression: &'static str,
    otherwise: &'static str,
) -> Attribute {
    Attribute {
        column,
        data_type,
        expression,
        otherwise,
    }
}

/// The attributes in the order of the query, which [`TraceRows`] relies on.
const ATTRIBUTES: [Attribute; 10] = [
    attribute("public", "UInt8", "t.public", "0"),
    attribute("bookmarked", "UInt8", "t.bookmarked", "0"),
    attribute("name", "String", "ifNull(t.name, '')", "''"),
    attribute("user_id", "String", "ifNull(t.user_id, '')", "''"),
    attribute("session_id", "String", "ifNull(t.session_id, '')", "''"),
    attribute("release", "String", "ifNull(t.release, '')", "''"),
    attribute("version", "String", "ifNull(t.version, '')", "''"),
    attribute("tags", "Array(String)", "t.tags", "[]"),
    attribute("metadata", "Array(String)", "mapKeys(t.metadata)", "[]"),
    attribute("metadata", "Array(String)", "mapValues(t.metadata)", "[]"),
];

/// Keeps the latest version of each trace. Versions of one trace come one after
/// the other, perhaps in different blocks.
struct LatestVersions<'a> {
    writer: DayWriter<'a>,
    pending: Option<Pending>,
    traces: u64,
}

struct Pending {
    key: Vec<u8>,
    record: Vec<u8>,
    event_ts: i64,
    is_deleted: bool,
}

impl LatestVersions<'_> {
    fn take_block(&mut self, block: &Block, seen: &mut SeenTraces) -> Result<(), WorkError> {
        let mut rows = TraceRows::new(block)?;
        let mut key = Vec::new();
        for _ in 0..block.rows {
            let (project_id, trace_id, record) = rows.next_row()?;
            key.clear();
            key::encode(&mut key, project_id, trace_id);
            match &mut self.pending {
                Some(pending) if pending.key == key => {
                    // Of two versions with the same time the one that comes
                    // later was written later.
                    if record.event_ts >= pending.event_ts {
                        pending.replace(&record)?;
                    }
                }
                _ => {
                    let recycled = self.write_pending(seen)?;
                    self.pending = Some(recycled.filled(&key, &record)?);
                }
            }
        }
        Ok(())
    }

    /// Writes the trace whose last version has come, and gives its buffers back.
    fn write_pending(&mut self, seen: &mut SeenTraces) -> Result<Pending, WorkError> {
        let Some(pending) = self.pending.take() else {
            return Ok(Pending {
                key: Vec::new(),
                record: Vec::new(),
                event_ts: 0,
                is_deleted: false,
            });
        };
        self.writer.put(&pending.key, &pending.record, seen)?;
        self.traces += u64::from(!pending.is_deleted);
        Ok(pending)
    }

    fn finish(mut self, seen: &mut SeenTraces) -> Result<u64, WorkError> {
        self.write_pending(seen)?;
        self.writer.finish()?;
        Ok(self.traces)
    }
}

impl Pending {
    fn filled(mut self, key: &[u8], record: &TraceRecord<'_>) -> Result<Self, WorkError> {
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

/// The rows of a block of traces.
struct TraceRows<'a> {
    project_ids: StringCursor<'a>,
    trace_ids: StringCursor<'a>,
    event_ts: FixedCursor<'a, 8>,
    flags: [FixedCursor<'a, 1>; 3],
    texts: [StringCursor<'a>; 5],
    arrays: [(ArrayCursor<'a>, StringCursor<'a>); 3],
}

impl<'a> TraceRows<'a> {
    fn new(block: &'a Block) -> Result<Self, NativeError> {
        if block.columns.len() != ATTRIBUTES.len() + 4 {
            return Err(NativeError::corrupt(format!(
                "{} columns arrived where {} were asked for",
                block.columns.len(),
                ATTRIBUTES.len() + 4
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
            event_ts: FixedCursor::new(block.values(2)),
            flags: [flag(3), flag(4), flag(5)],
            texts: [text(6), text(7), text(8), text(9), text(10)],
            arrays: [array(11)?, array(12)?, array(13)?],
        })
    }

    fn next_row(&mut self) -> Result<(&'a [u8], &'a [u8], TraceRecord<'a>), NativeError> {
        let project_id = self.project_ids.next_value()?;
        let trace_id = self.trace_ids.next_value()?;
        let event_ts = i64::from_le_bytes(self.event_ts.next_value()?);
        let mut flags = [false; 3];
        for (flag, column) in flags.iter_mut().zip(&mut self.flags) {
            *flag = column.next_value()? != [0];
        }
        let mut texts = [Text::new(&[]); 5];
        for (text, column) in texts.iter_mut().zip(&mut self.texts) {
            *text = Text::new(column.next_value()?);
        }
        let [tags, names, values] = &mut self.arrays;
        let tags = next_array(tags)?;
        let names = next_array(names)?;
        let values = next_array(values)?;
        let [is_deleted, public, bookmarked] = flags;
        if is_deleted {
            return Ok((project_id, trace_id, TraceRecord::deleted(event_ts)));
        }
        let [name, user_id, session_id, release, version] = texts;
        let record = TraceRecord {
            event_ts,
            is_deleted,
            public,
            bookmarked,
            name,
            user_id,
            session_id,
            release,
            version,
            tags,
            metadata: names.into_iter().zip(values).collect(),
        };
        Ok((project_id, trace_id, record))
    }
}

fn next_array<'a>(
    (lengths, elements): &mut (ArrayCursor<'a>, StringCursor<'a>),
) -> Result<Vec<&'a Text>, NativeError> {
    (0..lengths.next_length()?)
        .map(|_| elements.next_value().map(Text::new))
        .collect()
}
