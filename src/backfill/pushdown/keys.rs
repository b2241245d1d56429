//! The keys of a segment's rows, before it is known which of them are to be written.

use std::collections::HashMap;

use crate::backfill::guard::row_hash::{self, RowHashes};
use crate::backfill::guard::seen_row::{SEEN_BYTES, SeenRow};
use crate::memory::numbers::short;
use crate::trace_store::{HASH_BYTES, HashKey};

/// A trace's `project_id` and `id`.
pub(crate) type TraceName = (Vec<u8>, Vec<u8>);

/// The place of a trace among those of a segment; `None` for rows that this process writes, whatever their
/// trace.
pub(super) type TracePlace = Option<u32>;

/// An encoded row with the place of its trace.
const ROW_BYTES: usize = SEEN_BYTES + 4;
/// Marks rows that this process writes.
const APART: u32 = u32::MAX;
/// Marks versions that do not count, and deleted rows.
const GONE: u32 = u32::MAX - 1;

/// The keys of a segment's rows and of their traces.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    rows: Vec<u8>,
    traces: Vec<u8>,
    names: Vec<u8>,
    /// Where project and id of each trace end in `names`, four bytes each.
    ends: Vec<u8>,
}

impl Keys {
    /// Number of its parts.
    pub(super) const PARTS: usize = 4;

    /// All of it as bytes.
    pub(super) fn parts(&self) -> [&[u8]; Self::PARTS] {
        [&self.rows, &self.traces, &self.names, &self.ends]
    }

    /// The reverse of [`Keys::parts`].
    pub(super) fn of_parts([rows, traces, names, ends]: [Vec<u8>; Self::PARTS]) -> Self {
        Self {
            rows,
            traces,
            names,
            ends,
        }
    }

    /// The rows and the places of their traces, at most `most` at once.
    pub(super) fn chunks(&self, most: usize) -> impl Iterator<Item = Vec<(SeenRow, TracePlace)>> {
        let (rows, _) = self.rows.as_chunks::<ROW_BYTES>();
        rows.chunks(most.max(1)).map(|rows| {
            let rows = rows.iter().map(|row| {
                let place = place_of(row);
                (seen(row), (place != APART).then_some(place))
            });
            rows.collect()
        })
    }

    /// Number of traces.
    pub(super) fn number_of_traces(&self) -> usize {
        self.traces.len() / HASH_BYTES
    }

    /// The key of a trace.
    pub(super) fn trace(&self, place: u32) -> HashKey {
        let mut key = [0; HASH_BYTES];
        let start = place as usize * HASH_BYTES;
        key.copy_from_slice(&self.traces[start..start + HASH_BYTES]);
        key
    }

    /// Project and id of a trace.
    pub(super) fn name(&self, place: u32) -> TraceName {
        let (ends, _) = self.ends.as_chunks::<4>();
        let end = |index: usize| u32::from_le_bytes(ends[index]) as usize;
        let index = 2 * place as usize;
        let start = index.checked_sub(1).map_or(0, end);
        let (project_end, id_end) = (end(index), end(index + 1));
        let project = self.names[start..project_end].to_vec();
        (project, self.names[project_end..id_end].to_vec())
    }
}

/// Gathers the keys of a segment from all versions of its rows, as `FINAL` would choose among them.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    rows: Vec<Encoded>,
    /// The first hash of each row's sort key, and the row's number.
    order: Vec<(u64, u32)>,
    places: HashMap<HashKey, u32>,
    keys: Keys,
}

/// An encoded row with the place of its trace.
type Encoded = [u8; ROW_BYTES];

/// Approximate bytes of an entry in `places`.
const PLACE_BYTES: usize = 32;

impl Gathering {
    /// Approximate bytes of a row while it is gathered.
    const BYTES_PER_ROW: usize = ROW_BYTES + size_of::<(u64, u32)>();

    /// Has room for about so many rows, within so many bytes.
    pub(super) fn new(rows: u64, most_bytes: usize) -> Self {
        let most = most_bytes / Self::BYTES_PER_ROW;
        let rows = usize::try_from(rows).map_or(most, |rows| rows.min(most));
        Self {
            rows: Vec::with_capacity(rows),
            order: Vec::with_capacity(rows),
            ..Self::default()
        }
    }

    /// Adds a version of a row. `trace` is its trace's project and id, or nothing if this process writes it.
    pub(super) fn add(&mut self, row: &SeenRow, hashes: &RowHashes, trace: Option<(&[u8], &[u8])>) {
        let place = match trace {
            _ if row.version.is_deleted => GONE,
            Some((project, id)) => self.place(hashes, project, id),
            None => APART,
        };
        let sort_key = row_hash::hashes(&hashes.sort_key(row.version.place)).0;
        self.order.push((sort_key, short(self.rows.len())));
        let mut encoded = [0; ROW_BYTES];
        encoded[..SEEN_BYTES].copy_from_slice(&row.encode());
        encoded[SEEN_BYTES..].copy_from_slice(&place.to_le_bytes());
        self.rows.push(encoded);
    }

    fn place(&mut self, hashes: &RowHashes, project: &[u8], id: &[u8]) -> u32 {
        let trace = hashes.trace_key(id);
        let next = short(self.places.len());
        let place = *self.places.entry(trace).or_insert(next);
        if place == next {
            self.keys.traces.extend_from_slice(&trace);
            for part in [project, id] {
                self.keys.names.extend_from_slice(part);
                let end = short(self.keys.names.len());
                self.keys.ends.extend_from_slice(&end.to_le_bytes());
            }
        }
        place
    }

    /// Approximate memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let of_traces = HASH_BYTES + 8 + PLACE_BYTES;
        self.rows.len() * Self::BYTES_PER_ROW
            + self.places.len() * of_traces
            + self.keys.names.len()
    }

    /// The keys of the rows that `FINAL` leaves. `None` if it chooses among versions of one time that differ:
    /// the order of their parts decides, which only the server knows.
    pub(super) fn finish(mut self) -> Option<Keys> {
        self.order.sort_unstable();
        for neighbours in self.order.chunk_by(|a, b| a.0 == b.0) {
            // Few rows have several versions.
            if neighbours.len() > 1 {
                let mut numbers: Vec<u32> = neighbours.iter().map(|(_, number)| *number).collect();
                choose(&mut self.rows, &mut numbers)?;
            }
        }
        self.rows.retain(|row| place_of(row) != GONE);
        self.keys.rows = self.rows.into_flattened();
        Some(self.keys)
    }
}

/// Marks all but the latest version of each of some rows, which agree in the first hash of their sort keys.
fn choose(rows: &mut [Encoded], numbers: &mut [u32]) -> Option<()> {
    let version = |rows: &[Encoded], number: u32| {
        let row = seen(&rows[number as usize]);
        (row_hash::hashes(&row.observation).1, row.version.event_ts)
    };
    numbers.sort_unstable_by_key(|&number| version(rows, number));
    let is_of_one_row = |a: &u32, b: &u32| version(rows, *a).0 == version(rows, *b).0;
    let groups: Vec<&[u32]> = numbers.chunk_by(is_of_one_row).collect();
    for group in groups {
        let Some((&latest, older)) = group.split_last() else {
            continue;
        };
        let (time, row) = (version(rows, latest).1, rows[latest as usize]);
        for &number in older {
            if version(rows, number).1 == time && rows[number as usize] != row {
                return None;
            }
            rows[number as usize][SEEN_BYTES..].copy_from_slice(&GONE.to_le_bytes());
        }
    }
    Some(())
}

fn seen(encoded: &Encoded) -> SeenRow {
    let mut row = [0; SEEN_BYTES];
    row.copy_from_slice(&encoded[..SEEN_BYTES]);
    SeenRow::decode(&row)
}

fn place_of(encoded: &Encoded) -> u32 {
    let mut place = [0; 4];
    place.copy_from_slice(&encoded[SEEN_BYTES..]);
    u32::from_le_bytes(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backfill::guard::row_hash::{RowParts, version};
    use crate::backfill::pushdown::KeyFile;
    use crate::clickhouse::PartitionState;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A version: its id, trace, type, day, time, and whether it is deleted.
    type Made = (u8, u8, bool, u16, i64, bool);

    fn versions() -> impl Strategy<Value = Vec<Made>> {
        let version = (
            0_u8..6,
            0_u8..3,
            any::<bool>(),
            0_u16..3,
            -2_i64..3,
            any::<bool>(),
        );
        proptest::collection::vec(version, 0..60)
    }

    fn made(version: Made) -> (SeenRow, RowHashes, [u8; 1]) {
        let (id, trace, is_span, day, event_ts, is_deleted) = version;
        let trace = [b't' + trace];
        let hashes = RowParts {
            project: b"p",
            trace: &trace,
            span: &[id],
        }
        .hashes();
        let observation_type: &[u8] = if is_span { b"SPAN" } else { b"EVENT" };
        let row = SeenRow {
            key: hashes.row_key(i64::from(day)),
            observation: hashes.observation_key(),
            version: self::version(event_ts, day, observation_type, is_deleted),
        };
        (row, hashes, trace)
    }

    /// What `FINAL` leaves, or nothing if it chooses among versions of one time.
    fn chosen(versions: &[Made]) -> Option<Vec<Made>> {
        let mut by_key: BTreeMap<_, Vec<Made>> = BTreeMap::new();
        for &version in versions {
            let (id, _, is_span, day, ..) = version;
            by_key.entry((id, is_span, day)).or_default().push(version);
        }
        let mut left = Vec::new();
        for versions in by_key.values() {
            let latest = versions.iter().map(|version| version.4).max()?;
            let latest: Vec<_> = versions
                .iter()
                .filter(|version| version.4 == latest)
                .collect();
            if latest.iter().any(|version| **version != *latest[0]) {
                return None;
            }
            left.extend(
                latest
                    .first()
                    .filter(|version| !version.5)
                    .map(|version| **version),
            );
        }
        Some(left)
    }

    proptest! {
        #[test]
        fn the_keys_are_those_of_the_rows_that_final_leaves(versions in versions(), chunk in 1_usize..9) {
            let mut gathering = Gathering::default();
            for &version in &versions {
                let (row, hashes, trace) = made(version);
                // Rows of the last trace are for this process.
                let trace = (version.1 != 2).then_some((&b"p"[..], &trace[..]));
                gathering.add(&row, &hashes, trace);
            }
            prop_assert!(gathering.bytes() >= versions.len() * ROW_BYTES);
            let keys = gathering.finish();
            let chosen = chosen(&versions);
            prop_assert_eq!(keys.is_some(), chosen.is_some());
            let (Some(keys), Some(chosen)) = (keys, chosen) else { return Ok(()) };

            let directory = tempfile::tempdir().unwrap();
            let file = KeyFile::new(directory.path(), state(7, 7, 7), u64::MAX).unwrap();
            file.put(1, &Keys::default());
            file.put(3, &keys);
            prop_assert_eq!(file.take(2).unwrap(), None);
            let kept = file.take(3).unwrap().unwrap();
            prop_assert_eq!(&kept, &keys);
            prop_assert_eq!(file.take(3).unwrap(), None);

            let mut rows: Vec<_> = kept.chunks(chunk).flatten().map(|(row, place)| {
                let trace = place.map(|place| (kept.trace(place), kept.name(place)));
                (row.key, row.observation, row.version.place, row.version.event_ts, trace)
            }).collect();
            let mut expected: Vec<_> = chosen.iter().map(|&version| {
                let (row, hashes, trace) = made(version);
                let of_row = (hashes.trace_key(&trace), (b"p".to_vec(), trace.to_vec()));
                let trace = (version.1 != 2).then_some(of_row);
                (row.key, row.observation, row.version.place, row.version.event_ts, trace)
            }).collect();
            rows.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(rows, expected);
        }
    }

    fn state(newest: u64, covered: u64, mutation: u64) -> PartitionState {
        PartitionState {
            newest,
            covered,
            mutation,
        }
    }

    #[test]
    fn keys_hold_until_rows_arrive_or_are_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let file = KeyFile::new(directory.path(), state(7, 6, 5), 0).unwrap();
        for (newest, covered, mutation, holds) in [
            (7, 6, 5, true),
            (8, 7, 5, false),
            // What a replica has got late.
            (7, 7, 5, false),
            (7, 6, 6, false),
            // A replica that lags behind: the number of rows written tells.
            (6, 5, 5, true),
        ] {
            assert_eq!(file.is_as_of(state(newest, covered, mutation)), holds);
        }
    }

    #[test]
    fn keys_are_kept_as_long_as_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let file = KeyFile::new(directory.path(), state(7, 7, 7), 100).unwrap();
        let keys = |bytes| Keys::of_parts([vec![1; bytes], Vec::new(), Vec::new(), Vec::new()]);
        for (segment, bytes) in [(0, 90), (1, 11), (2, 10), (3, 1)] {
            file.put(segment, &keys(bytes));
        }
        let kept = [0, 1, 2, 3].map(|segment| file.take(segment).unwrap());
        assert_eq!(kept, [Some(keys(90)), None, Some(keys(10)), None]);
    }
}
