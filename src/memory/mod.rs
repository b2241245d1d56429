//! Memory is a budget: `--memory-limit` divided among everything that grows.

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

/// A number of bytes, written by people as `512MiB`, `1.5GB` or `1073741824`.
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
                    "'{text}' is not a size: write for example 512MiB or 2GiB"
                ));
            }
        };
        let number: f64 = number
            .parse()
            .map_err(|_| format!("'{text}' is not a size: write for example 512MiB or 2GiB"))?;
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

/// Program, stacks, connections, SST writers: what does not depend on the data.
const FIXED: u64 = 72 * MIB;
/// Least bytes of a segment for which the budget makes sense.
const SMALLEST_SEGMENT: u64 = 6 * MIB;
/// More blocks that wait to be sent gain nothing.
const LARGEST_BACKLOG: u64 = 24 * MIB;
/// Looking up the traces of more blocks at once gains nothing where few traces have many rows each.
const LARGEST_LOOK_UP: u64 = 16 * MIB;
/// Blocks of more bytes gain nothing.
const LARGEST_PREFERRED_BLOCK: u64 = 4 * MIB;

/// How the limit is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// RocksDB's block cache, indexes and filters included.
    pub cache_bytes: usize,
    /// Filter over the traces seen while loading. Given back before streaming.
    pub seen_bytes: usize,
    /// All that one segment holds at most: the block that arrives, the ones that wait for their
    /// traces, are enriched, or wait to be sent. Usual blocks take less.
    pub segment_bytes: usize,
    /// Blocks of one segment that wait to be sent, as long as they are of the usual size.
    pub backlog_bytes: usize,
    /// The largest block that may arrive.
    pub max_block_bytes: usize,
    /// The largest block of traces that may arrive while loading, when nothing
    /// else needs the segments' share.
    pub load_block_bytes: usize,
    /// Blocks of so many bytes together are enriched at once, so that a look-up asks
    /// for many traces: the more, the fewer blocks of the store are read twice.
    pub look_up_bytes: usize,
    /// The size of block the server is asked for.
    pub preferred_block_bytes: usize,
    /// Buffers that are kept for the next block.
    pub pool_bytes: usize,
    /// The largest buffer that is kept: one that was needed for an unusual block
    /// would hold its memory for a usual one.
    pub pooled_buffer_bytes: usize,
}

impl Budget {
    /// Divides `limit` for `concurrency` segments at once.
    ///
    /// An eighth is the block cache: segments go from day to day, so it has to hold
    /// the indexes and filters of a few days only. As much again is for the blocks
    /// that look-ups hold, and for what the allocator keeps. The rest, less what is fixed, is for the
    /// segments. Of a segment's share three eighths are for blocks that wait to be sent, and a
    /// quarter for those that wait for their traces. What is larger than usual makes room for itself,
    /// by waiting for the others to be sent.
    ///
    /// # Errors
    /// A sentence where the limit is too small.
    pub fn new(limit: ByteSize, concurrency: usize) -> Result<Self, String> {
        let cache = limit.0 / 8;
        let segments = limit.0.saturating_sub(2 * cache + FIXED) / concurrency.max(1) as u64;
        if segments < SMALLEST_SEGMENT {
            let least = (FIXED + concurrency as u64 * SMALLEST_SEGMENT) * 4 / 3 + MIB;
            return Err(format!(
                "a memory limit of {limit} is too small for {concurrency} segments at once: \
                 use at least {}, or fewer with --concurrency",
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
            // While it arrives its buffer may be half as large again.
            max_block_bytes: in_memory(segments / 3),
            load_block_bytes: (in_memory(segments) * concurrency) / 4,
            preferred_block_bytes: in_memory(preferred),
            pool_bytes: in_memory(segments) * concurrency,
            pooled_buffer_bytes: in_memory(4 * preferred),
        })
    }
}

impl Budget {
    /// A pool for buffers of one kind.
    pub fn pool(&self) -> BufferPool {
        BufferPool::new(self.pool_bytes, self.pooled_buffer_bytes)
    }
}

/// Resident memory of this process now, in bytes, where the system tells it.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib = line.split_whitespace().nth(1)?.parse::<u64>().ok()?;
    Some(kib * KIB)
}

/// Peak resident memory of this process, in bytes.
pub(crate) fn peak_resident_bytes() -> u64 {
    // The kernel's getrusage counts what the parent had before exec; VmHWM does not.
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
