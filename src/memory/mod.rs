//! The memory budget: `--memory-limit` divided among everything that grows.

pub(crate) mod buffer_pool;
pub(crate) mod numbers;
pub(crate) mod open_files;

use std::fmt;
use std::str::FromStr;

use self::buffer_pool::BufferPool;
use self::numbers::{in_memory, whole};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// A number of bytes, parsed from `512MiB`, `1.5GB` or `1073741824`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => KIB,
            "m" | "mib" => MIB,
            "g" | "gib" => GIB,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => {
                return Err(format!(
                    "'{text}' is not a size: use, for example, 512MiB or 2GiB"
                ));
            }
        };
        let number: f64 = number
            .parse()
            .map_err(|_| format!("'{text}' is not a size: use, for example, 512MiB or 2GiB"))?;
        Ok(ByteSize(whole(number * factor as f64)))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            GIB.. => (GIB, "GiB"),
            MIB.. => (MIB, "MiB"),
            KIB.. => (KIB, "KiB"),
            _ => return write!(f, "{} B", self.0),
        };
        write!(f, "{:.1} {name}", self.0 as f64 / unit as f64)
    }
}

/// Code, stacks, connections and SST writers: everything that does not depend on the data.
const FIXED: u64 = 72 * MIB;
/// Minimum bytes per segment for a workable budget.
const SMALLEST_SEGMENT: u64 = 6 * MIB;
/// A longer send queue gains nothing.
const LARGEST_BACKLOG: u64 = 24 * MIB;
/// Larger look-ups gain nothing when few traces have many rows each.
const LARGEST_LOOK_UP: u64 = 16 * MIB;
/// Rows of a statement with which the server makes events, at most: the keys of their traces travel in it.
pub(crate) const MOST_STATEMENT_ROWS: u64 = 1_000_000;
/// Bytes of memory for each row of such a statement while its keys are read, if each has a trace of its own:
/// its key, its trace's key twice and name once, and the text of the list in the statement.
const BYTES_PER_STATEMENT_ROW: usize = 250;
/// Larger blocks gain nothing.
const LARGEST_PREFERRED_BLOCK: u64 = 4 * MIB;

/// The division of the memory limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// RocksDB's block cache, including indexes and filters.
    pub cache_bytes: usize,
    /// Filter over the traces seen while loading. Released before streaming starts.
    pub seen_bytes: usize,
    /// Maximum held by one segment: the arriving block plus those waiting for traces, being
    /// enriched or waiting to be sent. Typical blocks need less.
    pub segment_bytes: usize,
    /// Send queue of one segment, for blocks of typical size.
    pub backlog_bytes: usize,
    /// The largest block accepted.
    pub max_block_bytes: usize,
    /// The largest block of traces accepted while loading, when the segments' share is free.
    pub load_block_bytes: usize,
    /// Blocks are enriched together up to this size. The more traces in one look-up, the fewer
    /// blocks of the store are read twice.
    pub look_up_bytes: usize,
    /// The block size requested from the server.
    pub preferred_block_bytes: usize,
    /// Idle buffers kept for reuse.
    pub pool_bytes: usize,
    /// The largest buffer kept. A buffer that grew for an unusual block would waste its memory on
    /// typical ones.
    pub pooled_buffer_bytes: usize,
}

impl Budget {
    /// Divides `limit` among `concurrency` segments.
    ///
    /// One eighth goes to the block cache. Segments proceed day by day, so it only has to hold the
    /// indexes and filters of a few days. Another eighth covers the blocks pinned by look-ups and
    /// the allocator's overhead. The segments share the rest, minus the fixed part. Within a
    /// segment, three eighths are for blocks waiting to be sent and a quarter for blocks waiting
    /// for traces. A block larger than usual waits until enough of the others are sent.
    ///
    /// # Errors
    /// A sentence for the operator if the limit is too small.
    pub fn new(limit: ByteSize, concurrency: usize) -> Result<Self, String> {
        let cache = limit.0 / 8;
        let segments = limit.0.saturating_sub(2 * cache + FIXED) / concurrency.max(1) as u64;
        if segments < SMALLEST_SEGMENT {
            let least = (FIXED + concurrency as u64 * SMALLEST_SEGMENT) * 4 / 3 + MIB;
            return Err(format!(
                "memory limit {limit} is too small for {concurrency} segments at once: set at \
                 least {}, or lower --concurrency",
                ByteSize(least)
            ));
        }
        let preferred = (segments / 24).min(LARGEST_PREFERRED_BLOCK);
        Ok(Self {
            cache_bytes: in_memory(cache),
            seen_bytes: in_memory(limit.0 / 4),
            segment_bytes: in_memory(segments),
            backlog_bytes: in_memory((segments * 3 / 8).min(LARGEST_BACKLOG)),
            look_up_bytes: in_memory((segments / 4).min(LARGEST_LOOK_UP)),
            // While a block arrives, its buffer may be half as large again.
            max_block_bytes: in_memory(segments / 3),
            load_block_bytes: (in_memory(segments) * concurrency) / 4,
            preferred_block_bytes: in_memory(preferred),
            pool_bytes: in_memory(segments) * concurrency,
            pooled_buffer_bytes: in_memory(4 * preferred),
        })
    }
}

impl Budget {
    /// Rows of a statement with which the server makes events.
    pub(crate) fn rows_per_statement(&self) -> u64 {
        let rows = self.segment_bytes / BYTES_PER_STATEMENT_ROW;
        (rows as u64).clamp(1, MOST_STATEMENT_ROWS)
    }

    /// A pool for one kind of buffer.
    pub fn pool(&self) -> BufferPool {
        BufferPool::new(self.pool_bytes, self.pooled_buffer_bytes)
    }
}

/// Resident memory of this process in bytes, if the system reports it.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib = line.split_whitespace().nth(1)?.parse::<u64>().ok()?;
    Some(kib * KIB)
}

/// Peak resident memory of this process, in bytes.
pub(crate) fn peak_resident_bytes() -> u64 {
    // getrusage includes the parent's memory from before exec; VmHWM does not.
    let from_proc = std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
    if let Some(kib) = from_proc {
        return kib * KIB;
    }
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| {
        let peak = u64::try_from(usage.max_rss()).unwrap_or(0);
        if cfg!(target_os = "macos") {
            peak
        } else {
            peak * KIB
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("512MiB", 512 * MIB),
            ("512M", 512 * MIB),
            ("1.5 GiB", GIB + 512 * MIB),
            ("2gb", 2_000_000_000),
            ("1000", 1000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MiB", "5 apples", "-1", "1..2G"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_parts_of_the_budget_stay_within_the_limit() {
        for limit in [128, 256, 512, 1024, 8192] {
            for concurrency in [1, 2, 4] {
                if limit == 128 && concurrency > 2 {
                    continue;
                }
                let limit = ByteSize(limit * MIB);
                let budget = Budget::new(limit, concurrency).unwrap();
                let segments = concurrency * budget.segment_bytes;
                assert!((budget.cache_bytes + segments) as u64 + FIXED <= limit.0);
                let waiting = budget.backlog_bytes + budget.look_up_bytes;
                let usual = waiting + 6 * budget.preferred_block_bytes;
                assert!(usual <= budget.segment_bytes);
                assert!(budget.max_block_bytes * 3 / 2 <= budget.segment_bytes / 2);
            }
        }
        assert!(Budget::new(ByteSize(64 * MIB), 1).is_err());
        assert!(Budget::new(ByteSize(512 * MIB), 100).is_err());
    }
}
