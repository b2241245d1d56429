//! Row hashes, computed both by ClickHouse and by this program.
//!
//! Each is defined twice, in SQL and in Rust; a test on a real server keeps them equal
//! (`tests/faults/live.rs` would see duplicate rows if they differed). xxHash64 and xxHash32 with
//! seed 0 are the same in ClickHouse and everywhere else.

use twox_hash::{XxHash32, XxHash64};

use crate::backfill::error::WorkError;
use crate::native::{Block, FixedCursor};
use crate::partition::Day;
use crate::trace_store::{HASH_BYTES, HashKey, ROW_KEY_BYTES, RowKey, Version};

/// Odd factors for the parts of a hash before they are added, so that swapping parts changes it.
const PROJECT: u64 = 0x9e37_79b9_7f4a_7c15;
const TRACE: u64 = 0xc2b2_ae3d_27d4_eb4f;
const SPAN: u64 = 0x1656_67b1_9e37_79f9;
const START: u64 = 0x27d4_eb2f_1656_67c5;
const EVENT_TS: u64 = 0x8538_ecb5_bd45_6ea3;
const PLACE: u64 = 0xff51_afd7_ed55_8ccd;
/// Leading span id bytes that determine a row's position.
const PREFIX: usize = 6;
const MICROSECONDS_PER_DAY: i64 = 86_400_000_000;

/// An event's identity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowParts<'a> {
    /// `project_id`
    pub project: &'a [u8],
    /// `trace_id`
    pub trace: &'a [u8],
    /// `span_id`, or the observation's `id`
    pub span: &'a [u8],
}

impl RowParts<'_> {
    /// Hashes the parts, once for all keys.
    pub(crate) fn hashes(&self) -> RowHashes {
        let mut prefix = [0; 8];
        for (to, from) in prefix[2..].iter_mut().zip(self.span.iter().take(PREFIX)) {
            *to = *from;
        }
        RowHashes {
            project: XxHash64::oneshot(0, self.project),
            trace: XxHash64::oneshot(0, self.trace),
            span: XxHash64::oneshot(0, self.span),
            check: XxHash32::oneshot(0, self.span),
            prefix: u64::from_be_bytes(prefix),
        }
    }
}

/// The hashes of an event's identity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowHashes {
    project: u64,
    trace: u64,
    span: u64,
    /// A second hash of the span id.
    check: u32,
    /// The leading bytes of the span id.
    prefix: u64,
}

impl RowHashes {
    fn sum(&self, span: u64) -> u64 {
        self.project
            .wrapping_mul(PROJECT)
            .wrapping_add(self.trace.wrapping_mul(TRACE))
            .wrapping_add(span.wrapping_mul(SPAN))
    }

    /// The key of the row that starts at `start`, in microseconds since 1970. Rows of one project
    /// and day with consecutive span ids are neighbours.
    pub(crate) fn row_key(&self, start: i64) -> RowKey {
        let day = u16::try_from(start.div_euclid(MICROSECONDS_PER_DAY)).unwrap_or(u16::MAX);
        let hash = self
            .sum(self.span)
            .wrapping_add(start.cast_unsigned().wrapping_mul(START));
        let parts = KeyParts {
            day,
            place: self.project << 48 | self.prefix,
            hash,
            check: self.check,
        };
        parts.row_key()
    }

    /// The observation's key, independent of its type and time.
    pub(crate) fn observation_key(&self) -> HashKey {
        hash_key(self.sum(self.span), self.check)
    }

    /// The key of an observation in the sort order of its table: `FINAL` leaves one row for each. `place` is
    /// that of its [`Version`].
    pub(crate) fn sort_key(&self, place: u64) -> HashKey {
        let hash = self
            .project
            .wrapping_mul(PROJECT)
            .wrapping_add(self.span.wrapping_mul(SPAN))
            .wrapping_add(place.wrapping_mul(PLACE));
        hash_key(hash, self.check)
    }

    /// The key of the trace, whose id is given once more; independent of the span.
    pub(crate) fn trace_key(&self, trace: &[u8]) -> HashKey {
        hash_key(self.sum(OF_NO_SPAN), XxHash32::oneshot(0, trace))
    }
}

/// xxHash64 of the empty string.
const OF_NO_SPAN: u64 = 0xef46_db37_51d8_e999;

/// A key, in the parts that ClickHouse sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyParts {
    /// Days since 1970, in UTC.
    pub day: u16,
    /// Project and leading bytes of the span id.
    pub place: u64,
    /// Hash of all parts.
    pub hash: u64,
    /// A second hash, of the span id: the probability that two rows in a month of 500 million share
    /// both is 10⁻¹².
    pub check: u32,
}

impl KeyParts {
    /// Joins the parts such that keys sort like parts.
    pub(crate) fn row_key(self) -> RowKey {
        let mut key = [0; ROW_KEY_BYTES];
        key[..2].copy_from_slice(&self.day.to_be_bytes());
        key[2..10].copy_from_slice(&self.place.to_be_bytes());
        key[10..18].copy_from_slice(&self.hash.to_be_bytes());
        key[18..].copy_from_slice(&self.check.to_be_bytes());
        key
    }
}

/// Joins two hashes into one key with the same order.
pub(crate) fn hash_key(hash: u64, check: u32) -> HashKey {
    let mut key = [0; HASH_BYTES];
    key[..8].copy_from_slice(&hash.to_be_bytes());
    key[8..].copy_from_slice(&check.to_be_bytes());
    key
}

/// The two hashes of a key: the reverse of [`hash_key`].
pub(crate) fn hashes(key: &HashKey) -> (u64, u32) {
    let (hash, check) = key.split_at(8);
    let hash = hash.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    let check = check
        .iter()
        .fold(0, |sum, &byte| sum << 8 | u32::from(byte));
    (hash, check)
}

/// Calls `take` with each key of a block whose first two columns are the hashes, `UInt64` and `UInt32`.
///
/// # Errors
/// [`WorkError::Native`] if the block is damaged, and those of `take`.
pub(crate) fn for_each_key(
    block: &Block,
    mut take: impl FnMut(HashKey) -> Result<(), WorkError>,
) -> Result<(), WorkError> {
    let mut hashes = FixedCursor::<8>::new(block.values(0));
    let mut checks = FixedCursor::<4>::new(block.values(1));
    for _ in 0..block.rows {
        let hash = u64::from_le_bytes(hashes.next_value()?);
        take(hash_key(hash, u32::from_le_bytes(checks.next_value()?)))?;
    }
    Ok(())
}

/// A version of an observation.
pub(crate) fn version(
    event_ts: i64,
    day: u16,
    observation_type: &[u8],
    is_deleted: bool,
) -> Version {
    let kind = XxHash64::oneshot(0, observation_type) & TYPE_MASK;
    Version {
        event_ts,
        place: u64::from(day) << TYPE_BITS | kind,
        is_deleted,
    }
}

/// The key of one version of a row: versions of a row that `FINAL` leaves side by side differ in type, day or
/// `event_ts`.
pub(crate) fn version_key(row: &RowKey, version: Version) -> HashKey {
    let mut key = [0; HASH_BYTES];
    key.copy_from_slice(&row[ROW_KEY_BYTES - HASH_BYTES..]);
    let (hash, check) = hashes(&key);
    let hash = hash
        .wrapping_add(version.event_ts.cast_unsigned().wrapping_mul(EVENT_TS))
        .wrapping_add(version.place.wrapping_mul(PLACE));
    hash_key(hash, check)
}

/// The day of a [`Version::place`].
pub(crate) fn day_of_place(place: u64) -> Day {
    Day::try_from(place >> TYPE_BITS).unwrap_or(Day::MAX)
}

/// Bits of the type's hash that distinguish an observation's types on one day.
const TYPE_BITS: u32 = 48;
const TYPE_MASK: u64 = (1 << TYPE_BITS) - 1;

/// SQL columns or expressions for an event's identity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowColumns<'a> {
    /// `project_id`
    pub project: &'a str,
    /// `trace_id`
    pub trace: &'a str,
    /// `span_id`, or the observation's `id`
    pub span: &'a str,
}

/// Columns of the table `traces` with alias `t`; only their [`RowColumns::trace_key`] has a meaning.
pub(crate) const OF_TRACES: RowColumns<'static> = RowColumns {
    project: "t.project_id",
    trace: "t.id",
    span: "''",
};

impl RowColumns<'_> {
    fn sum(&self) -> String {
        format!(
            "xxHash64({}) * {PROJECT} + xxHash64({}) * {TRACE} + xxHash64({}) * {SPAN}",
            text(self.project),
            text(self.trace),
            text(self.span)
        )
    }

    /// SQL for the parts of [`KeyParts`], in order, for rows that start at `start`.
    pub(crate) fn row_key(&self, start: &str) -> [String; 4] {
        let start = microseconds(start);
        let span = text(self.span);
        [
            format!("toUInt16(intDiv({start}, {MICROSECONDS_PER_DAY}))"),
            format!(
                "bitOr(bitShiftLeft(xxHash64({}), 48), reinterpretAsUInt64(reverse(substring(\
                 concat({span}, repeat('\\0', {PREFIX})), 1, {PREFIX}))))",
                text(self.project)
            ),
            self.row_hash(&start),
            format!("xxHash32({span})"),
        ]
    }

    fn row_hash(&self, microseconds: &str) -> String {
        format!("{} + toUInt64({microseconds}) * {START}", self.sum())
    }

    /// SQL for the hashes of [`version_key`], for rows that start at `start`. `place` is SQL for
    /// [`Version::place`].
    pub(crate) fn version_key(&self, start: &str, event_ts: &str, place: &str) -> [String; 2] {
        let [_, _, hash, check] = self.row_key(start);
        let event_ts = microseconds(event_ts);
        let hash = format!("{hash} + toUInt64({event_ts}) * {EVENT_TS} + {place} * {PLACE}");
        [hash, check]
    }

    /// SQL for one number per row that starts at `start`.
    pub(crate) fn hash(&self, start: &str) -> String {
        self.row_hash(&microseconds(start))
    }

    /// SQL for the hashes of [`RowHashes::observation_key`].
    pub(crate) fn observation_key(&self) -> [String; 2] {
        [self.sum(), format!("xxHash32({})", text(self.span))]
    }

    /// SQL for the hashes of [`RowHashes::trace_key`].
    pub(crate) fn trace_key(&self) -> [String; 2] {
        let trace = RowColumns {
            span: "''",
            ..*self
        };
        [trace.sum(), format!("xxHash32({})", text(self.trace))]
    }
}

/// SQL for [`Version::place`].
pub(crate) fn version_place(start: &str, observation_type: &str) -> String {
    format!(
        "bitOr(bitShiftLeft(toUInt64(toUInt16(toDate({start}))), {TYPE_BITS}), \
         bitAnd(xxHash64({}), {TYPE_MASK}))",
        text(observation_type)
    )
}

/// SQL for a time in microseconds since 1970.
pub(crate) fn microseconds(moment: &str) -> String {
    format!("toUnixTimestamp64Micro(CAST({moment}, 'DateTime64(6)'))")
}

fn text(column: &str) -> String {
    format!("CAST({column}, 'String')")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: RowParts<'static> = RowParts {
        project: b"p",
        trace: b"t",
        span: b"span-1",
    };

    #[test]
    fn hashes_are_those_of_clickhouse() {
        // SELECT xxHash64('abc'), xxHash32('abc') on ClickHouse 26.7.
        assert_eq!(XxHash64::oneshot(0, b"abc"), 4_952_883_123_889_572_249);
        assert_eq!(XxHash32::oneshot(0, b"abc"), 852_579_327);
        assert_eq!(XxHash64::oneshot(0, b""), OF_NO_SPAN);
    }

    #[test]
    fn keys_of_neighbours_are_neighbours() {
        let key = |span: &'static [u8], start| RowParts { span, ..ROW }.hashes().row_key(start);
        let day = MICROSECONDS_PER_DAY;
        assert!(key(b"a", 5) < key(b"b", 3));
        assert!(key(b"zzzzzzz", day - 1) < key(b"", day));
        assert!(key(b"", 0) < key(b"a", 0));
        assert_ne!(key(b"abcdef1", 0), key(b"abcdef2", 0));
        assert_ne!(key(b"a", 1), key(b"a", 2));
    }

    #[test]
    fn a_later_day_counts_among_versions_of_the_same_time() {
        let early = version(7, 3, b"SPAN", false);
        assert!(early < version(7, 4, b"EVENT", true));
        assert!(early < version(8, 2, b"SPAN", false));
        assert_ne!(early.place, version(7, 3, b"EVENT", false).place);
    }
}
