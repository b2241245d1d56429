//! Decides which rows of a block to write: not outdated versions, not rows the target already has,
//! and not rows that Langfuse itself is about to write.

pub(crate) mod core_view;
pub(crate) mod leftover_inserts;
pub(crate) mod recovery;
pub(crate) mod roots;
pub(crate) mod row_hash;
pub(crate) mod target;
mod target_keys;
mod version_files;
pub(crate) mod version_scan;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use self::row_hash::{RowHashes, RowParts, version, version_key};
use super::error::WorkError;
use crate::mapping::{Helper, Mapping, Source};
use crate::memory::buffer_pool::BufferPool;
use crate::native::{Block, DataType, FixedCursor, NativeError, StringCursor};
use crate::partition::Day;
use crate::state::counts::LeftOut;
use crate::trace_store::{Against, HashKey, Root, RowKey, TargetRow, TraceStore, Version, key};

/// Positions of the columns that form a row's key and version.
#[derive(Debug, Clone)]
struct ColumnPlaces {
    project: usize,
    trace: usize,
    span: usize,
    start: TimeColumn,
    event_ts: TimeColumn,
    observation_type: usize,
    day: usize,
}

/// A `DateTime64` column.
#[derive(Debug, Clone, Copy)]
struct TimeColumn {
    index: usize,
    /// Microseconds per tick, or ticks per microsecond.
    scale: Scale,
}

#[derive(Debug, Clone, Copy)]
enum Scale {
    Times(i64),
    Through(i64),
}

impl TimeColumn {
    /// Finds a column among those that a mapping selects.
    fn find(mapping: &Mapping, name: &str) -> Result<Self, String> {
        let index = mapping.column_index(name).ok_or_else(|| {
            format!("the target has no writable column {name}, which every event needs")
        })?;
        let data_type = &mapping.pass_through[index].data_type;
        let digits = match DataType::parse(data_type) {
            Ok(DataType::Scalar { name, arguments }) if name == "DateTime64" => arguments
                .and_then(|arguments| arguments.split(',').next()?.trim().parse::<u32>().ok()),
            _ => None,
        };
        let scale = match digits {
            Some(digits @ 0..=6) => Scale::Times(10_i64.pow(6 - digits)),
            Some(digits @ 7..=9) => Scale::Through(10_i64.pow(digits - 6)),
            _ => {
                return Err(format!(
                    "column {name} of the target is {data_type}, not DateTime64 as in Langfuse's \
                     events tables"
                ));
            }
        };
        Ok(Self { index, scale })
    }

    fn microseconds(self, ticks: [u8; 8]) -> i64 {
        let ticks = i64::from_le_bytes(ticks);
        match self.scale {
            Scale::Times(factor) => ticks.saturating_mul(factor),
            Scale::Through(divisor) => ticks.div_euclid(divisor),
        }
    }
}

/// Checks rows against what the store knows of the target. All segments share one.
pub(crate) struct Guard {
    source: Source,
    columns: ColumnPlaces,
    store: Arc<TraceStore>,
    until: Option<i64>,
}

/// What to do with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Write,
    /// Write it; the target has an older version.
    WriteBesideOlder,
    Superseded,
    Live,
    AlreadyThere,
    WrittenBefore,
    LiveRoot,
    RootObservation,
    LivePath,
}

impl Verdict {
    fn is_write(self) -> bool {
        matches!(self, Verdict::Write | Verdict::WriteBesideOlder)
    }

    fn count(self, left_out: &mut LeftOut) {
        *match self {
            Verdict::Write => return,
            Verdict::WriteBesideOlder => &mut left_out.beside_older,
            Verdict::Superseded => &mut left_out.superseded,
            Verdict::Live => &mut left_out.live,
            Verdict::AlreadyThere => &mut left_out.already_there,
            Verdict::WrittenBefore => &mut left_out.written_before,
            Verdict::LiveRoot => &mut left_out.live_root,
            Verdict::RootObservation => &mut left_out.root_observation,
            Verdict::LivePath => &mut left_out.live_path,
        } += 1;
    }
}

/// A version of a row, and whether to write it.
pub(crate) struct Judged {
    /// Its [`version_key`].
    pub key: HashKey,
    /// The hashes of its ids.
    pub hashes: RowHashes,
    /// Whether to write it.
    pub is_write: bool,
}

/// The parts of a row that the guard reads.
struct SeenRow {
    hashes: RowHashes,
    key: RowKey,
    observation: HashKey,
    event_ts: i64,
    day: Day,
    version: Version,
}

impl Guard {
    /// A guard for rows selected by a mapping. Rows changed after `until`, in microseconds since
    /// 1970, are left to Langfuse.
    ///
    /// # Errors
    /// A sentence for the operator if the target lacks a required column or it has the wrong type.
    pub(crate) fn new(
        mapping: &Mapping,
        store: Arc<TraceStore>,
        until: Option<i64>,
    ) -> Result<Self, String> {
        let helper = |helper| {
            mapping
                .helper_index(helper)
                .ok_or_else(|| format!("helper column {helper:?} is not selected"))
        };
        let (project, trace) = mapping.key_columns;
        Ok(Self {
            source: mapping.source,
            columns: ColumnPlaces {
                project,
                trace,
                span: mapping.span_column,
                start: TimeColumn::find(mapping, "start_time")?,
                event_ts: TimeColumn::find(mapping, "event_ts")?,
                observation_type: mapping
                    .column_index("type")
                    .ok_or("the target has no writable column type")?,
                day: helper(Helper::Day)?,
            },
            store,
            until,
        })
    }

    /// The rows of a block to write, if any.
    ///
    /// # Errors
    /// [`WorkError`] if the block is damaged or the store fails.
    pub(crate) fn take(&self, block: Block) -> Result<(Option<Block>, LeftOut), WorkError> {
        let mut left_out = LeftOut::default();
        if self.lets_all_through() {
            return Ok((Some(block), left_out));
        }
        let mut written: Vec<Range<usize>> = Vec::new();
        let rows = self.rows(&block)?;
        for (row, verdict) in self.verdicts(&block, &rows)?.into_iter().enumerate() {
            if verdict.is_write() {
                match written.last_mut() {
                    Some(last) if last.end == row => last.end += 1,
                    _ => written.push(row..row + 1),
                }
            }
            verdict.count(&mut left_out);
        }
        let block = match &written[..] {
            [] => None,
            [all] if all.len() == block.rows => Some(block),
            // Use an exact-size buffer: the pool's are larger and would waste memory.
            _ => Some(block.take_rows(&written, BufferPool::new(0, 0).take())?),
        };
        Ok((block, left_out))
    }

    /// The key of each row of a block, and whether to write it.
    ///
    /// # Errors
    /// [`WorkError`] if the block is damaged or the store fails.
    pub(crate) fn judge(&self, block: &Block) -> Result<(Vec<Judged>, LeftOut), WorkError> {
        let mut left_out = LeftOut::default();
        let rows = self.rows(block)?;
        let verdicts = match self.lets_all_through() {
            true => vec![Verdict::Write; rows.len()],
            false => self.verdicts(block, &rows)?,
        };
        let judged = rows.iter().zip(verdicts).map(|(row, verdict)| {
            verdict.count(&mut left_out);
            Judged {
                key: version_key(&row.key, row.version),
                hashes: row.hashes,
                is_write: verdict.is_write(),
            }
        });
        Ok((judged.collect(), left_out))
    }

    fn lets_all_through(&self) -> bool {
        self.until.is_none()
            && !self.store.has(Against::Versions)
            && !self.store.has(Against::RowsBefore)
            && !self.store.has(Against::RowsSince)
            && !self.store.has(Against::Roots)
    }

    fn verdicts(&self, block: &Block, rows: &[SeenRow]) -> Result<Vec<Verdict>, WorkError> {
        let mut verdicts: Vec<Verdict> = rows
            .iter()
            .map(|row| match self.until {
                Some(until) if row.event_ts > until => Verdict::LivePath,
                _ => Verdict::Write,
            })
            .collect();
        match self.source {
            Source::Observations => self.find_superseded(rows, &mut verdicts)?,
            Source::Traces => self.find_roots(rows, &mut verdicts)?,
        }
        self.find_target_rows(rows, &mut verdicts)?;
        if self.source == Source::Traces {
            self.find_superseded_traces(block, rows, &mut verdicts)?;
        }
        Ok(verdicts)
    }

    fn rows(&self, block: &Block) -> Result<Vec<SeenRow>, NativeError> {
        let columns = &self.columns;
        let text = |index| StringCursor::new(block.values(index));
        let mut projects = text(columns.project);
        let mut traces = text(columns.trace);
        let mut spans = text(columns.span);
        let mut types = text(columns.observation_type);
        let mut starts = FixedCursor::<8>::new(block.values(columns.start.index));
        let mut event_ts = FixedCursor::<8>::new(block.values(columns.event_ts.index));
        let mut days = FixedCursor::<2>::new(block.values(columns.day));
        let mut rows = Vec::with_capacity(block.rows);
        for _ in 0..block.rows {
            let trace = traces.next_value()?;
            let hashes = RowParts {
                project: projects.next_value()?,
                trace,
                span: spans.next_value()?,
            }
            .hashes();
            let start = columns.start.microseconds(starts.next_value()?);
            let event_ts = columns.event_ts.microseconds(event_ts.next_value()?);
            let day = u16::from_le_bytes(days.next_value()?);
            rows.push(SeenRow {
                key: hashes.row_key(start),
                observation: match self.source {
                    Source::Observations => hashes.observation_key(),
                    Source::Traces => hashes.trace_key(trace),
                },
                hashes,
                event_ts,
                day,
                version: version(event_ts, day, types.next_value()?, false),
            });
        }
        Ok(rows)
    }

    fn find_superseded(&self, rows: &[SeenRow], verdicts: &mut [Verdict]) -> Result<(), WorkError> {
        let keys: Vec<HashKey> = rows.iter().map(|row| row.observation).collect();
        let latest = self.store.versions_of(&keys)?;
        for ((row, latest), verdict) in rows.iter().zip(latest).zip(verdicts) {
            let Some(latest) = latest else { continue };
            // A row written after the versions were read is newer than any of them.
            if row.version < latest {
                *verdict = Verdict::Superseded;
            }
        }
        Ok(())
    }

    fn find_roots(&self, rows: &[SeenRow], verdicts: &mut [Verdict]) -> Result<(), WorkError> {
        let keys: Vec<HashKey> = rows.iter().map(|row| row.observation).collect();
        let roots = self.store.roots_of(&keys)?;
        for (root, verdict) in roots.into_iter().zip(verdicts) {
            if let (Some(root), Verdict::Write) = (root, *verdict) {
                *verdict = match root {
                    Root::Live => Verdict::LiveRoot,
                    Root::Observation => Verdict::RootObservation,
                };
            }
        }
        Ok(())
    }

    /// Marks outdated trace versions, which nobody else needs to write. Other rows are sorted out
    /// when enriched.
    fn find_superseded_traces(
        &self,
        block: &Block,
        rows: &[SeenRow],
        verdicts: &mut [Verdict],
    ) -> Result<(), WorkError> {
        let mut projects = StringCursor::new(block.values(self.columns.project));
        let mut traces = StringCursor::new(block.values(self.columns.trace));
        let mut asked: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
        for (index, verdict) in verdicts.iter().enumerate() {
            let (project, trace) = (projects.next_value()?, traces.next_value()?);
            if !verdict.is_write() {
                let mut encoded = Vec::new();
                key::encode(&mut encoded, project, trace);
                asked.entry(encoded).or_default().push(index);
            }
        }
        let day = |indices: &[usize]| indices.first().map_or(0, |&index| rows[index].day);
        let keys: Vec<(Day, &[u8])> = asked
            .iter()
            .map(|(key, indices)| (day(indices), key.as_slice()))
            .collect();
        let known = self.store.trace_versions(&keys)?;
        for (indices, known) in asked.values().zip(known) {
            let Some(known) = known else { continue };
            for &index in indices {
                let row = &rows[index];
                let is_this = !known.is_deleted && known.day == row.day;
                if known.event_ts > row.event_ts || (known.event_ts == row.event_ts && !is_this) {
                    verdicts[index] = Verdict::Superseded;
                }
            }
        }
        Ok(())
    }

    fn find_target_rows(
        &self,
        rows: &[SeenRow],
        verdicts: &mut [Verdict],
    ) -> Result<(), WorkError> {
        let keys: Vec<RowKey> = rows.iter().map(|row| row.key).collect();
        for against in [Against::RowsBefore, Against::RowsSince] {
            let found = self.store.target_rows(against, &keys)?;
            for ((row, found), verdict) in rows.iter().zip(found).zip(&mut *verdicts) {
                if let Some(found) = found
                    && verdict.is_write()
                {
                    // Bookmarking or publishing creates a new trace version but updates existing
                    // events in place, without a new version of theirs.
                    let is_live_root = found.is_live && self.source == Source::Traces;
                    *verdict = match found.event_ts >= row.event_ts || is_live_root {
                        true => verdict_of(against, found),
                        false => Verdict::WriteBesideOlder,
                    };
                }
            }
        }
        Ok(())
    }
}

/// What to do with a row that the target has in an equally new version.
fn verdict_of(against: Against, found: TargetRow) -> Verdict {
    match (found.is_live, against) {
        (true, _) => Verdict::Live,
        (false, Against::RowsSince) => Verdict::WrittenBefore,
        (false, _) => Verdict::AlreadyThere,
    }
}
