//! Decides which rows of a block to write: not outdated versions, not rows the target already has,
//! and not rows that Langfuse itself is about to write.

pub(crate) mod core_view;
pub(crate) mod leftover_inserts;
pub(crate) mod recovery;
pub(crate) mod roots;
pub(crate) mod row_hash;
pub(crate) mod seen_row;
pub(crate) mod target;
mod target_keys;
pub(crate) mod version_files;
pub(crate) mod version_scan;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use self::row_hash::RowHashes;
use self::seen_row::{RowReader, SeenRow};
use super::error::WorkError;
use crate::mapping::{Mapping, Source};
use crate::memory::buffer_pool::BufferPool;
use crate::native::{Block, StringCursor};
use crate::partition::Day;
use crate::state::counts::LeftOut;
use crate::trace_store::{Against, HashKey, Root, RowKey, TargetRow, TraceStore, key};

/// Checks rows against what the store knows of the target. All segments share one.
pub(crate) struct Guard {
    source: Source,
    reader: RowReader,
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
        Ok(Self {
            source: mapping.source,
            reader: RowReader::new(mapping)?,
            store,
            until,
        })
    }

    /// The rows of a block to write, if any.
    ///
    /// # Errors
    /// [`WorkError`] if the block is damaged or the store fails.
    pub(crate) fn take(&self, block: Block) -> Result<(Option<Block>, LeftOut), WorkError> {
        if self.lets_all_through() {
            return Ok((Some(block), LeftOut::default()));
        }
        let rows = self.reader.rows(&block)?.into_iter();
        let rows: Vec<SeenRow> = rows.map(|(row, _)| row).collect();
        let (is_write, left_out) = self.judge(&rows, Some(&block))?;
        let mut written: Vec<Range<usize>> = Vec::new();
        for (row, _) in is_write.into_iter().enumerate().filter(|(_, is)| *is) {
            match written.last_mut() {
                Some(last) if last.end == row => last.end += 1,
                _ => written.push(row..row + 1),
            }
        }
        let block = match &written[..] {
            [] => None,
            [all] if all.len() == block.rows => Some(block),
            // Use an exact-size buffer: the pool's are larger and would waste memory.
            _ => Some(block.take_rows(&written, BufferPool::new(0, 0).take())?),
        };
        Ok((block, left_out))
    }

    /// The rows of a block, with the hashes of their ids.
    ///
    /// # Errors
    /// [`WorkError::Native`] if the block is damaged.
    pub(crate) fn seen(&self, block: &Block) -> Result<Vec<(SeenRow, RowHashes)>, WorkError> {
        Ok(self.reader.rows(block)?)
    }

    /// Whether to write each of some rows. Traces come from `block`, which tells them apart.
    ///
    /// # Errors
    /// [`WorkError`] if the block is damaged or the store fails.
    pub(crate) fn judge(
        &self,
        rows: &[SeenRow],
        block: Option<&Block>,
    ) -> Result<(Vec<bool>, LeftOut), WorkError> {
        let mut left_out = LeftOut::default();
        if self.lets_all_through() {
            return Ok((vec![true; rows.len()], left_out));
        }
        let mut verdicts = self.verdicts(rows)?;
        if let (Source::Traces, Some(block)) = (self.source, block) {
            self.find_superseded_traces(block, rows, &mut verdicts)?;
        }
        let is_write = verdicts.into_iter().map(|verdict| {
            verdict.count(&mut left_out);
            verdict.is_write()
        });
        Ok((is_write.collect(), left_out))
    }

    fn lets_all_through(&self) -> bool {
        self.until.is_none()
            && !self.store.has(Against::Versions)
            && !self.store.has(Against::RowsBefore)
            && !self.store.has(Against::RowsSince)
            && !self.store.has(Against::Roots)
    }

    /// What to do with rows, but for outdated versions of traces.
    fn verdicts(&self, rows: &[SeenRow]) -> Result<Vec<Verdict>, WorkError> {
        let mut verdicts: Vec<Verdict> = rows
            .iter()
            .map(|row| match self.until {
                Some(until) if row.version.event_ts > until => Verdict::LivePath,
                _ => Verdict::Write,
            })
            .collect();
        match self.source {
            Source::Observations => self.find_superseded(rows, &mut verdicts)?,
            Source::Traces => self.find_roots(rows, &mut verdicts)?,
        }
        self.find_target_rows(rows, &mut verdicts)?;
        Ok(verdicts)
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
        let mut projects = StringCursor::new(block.values(self.reader.project));
        let mut traces = StringCursor::new(block.values(self.reader.trace));
        let mut asked: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
        for (index, verdict) in verdicts.iter().enumerate() {
            let (project, trace) = (projects.next_value()?, traces.next_value()?);
            if !verdict.is_write() {
                let mut encoded = Vec::new();
                key::encode(&mut encoded, project, trace);
                asked.entry(encoded).or_default().push(index);
            }
        }
        let day = |indices: &[usize]| indices.first().map_or(0, |&index| rows[index].day());
        let keys: Vec<(Day, &[u8])> = asked
            .iter()
            .map(|(key, indices)| (day(indices), key.as_slice()))
            .collect();
        let known = self.store.trace_versions(&keys)?;
        for (indices, known) in asked.values().zip(known) {
            let Some(known) = known else { continue };
            for &index in indices {
                let row = &rows[index];
                let is_this = !known.is_deleted && known.day == row.day();
                if known.event_ts > row.version.event_ts
                    || (known.event_ts == row.version.event_ts && !is_this)
                {
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
                    *verdict = match found.event_ts >= row.version.event_ts || is_live_root {
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
