//! Reads a file ahead sequentially when a look-up needs many of its blocks.
//!
//! If the store is not in the page cache, each look-up reads a 4 KiB block from a random position.
//! Disks that are slow at random reads (a cloud volume manages 3,000 per second) read a whole file
//! in the time of a few hundred blocks.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rocksdb::LiveFile;

/// Minimum keys for read-ahead: below this, checking the files costs more than it saves.
pub(super) const FEWEST_KEYS: usize = 256;
/// Bytes read sequentially in the time of one random block, at least: 128 KiB at 400 MB/s take 0.3
/// ms.
const BYTES_LIKE_A_BLOCK: u64 = 32 * 1024;
/// Recently read bytes assumed to be still in the page cache: a few days for two segments, in a
/// month of 100 million traces.
const RECENT_BYTES: u64 = 512 * 1024 * 1024;

/// Recently read files, newest last, with their sizes.
#[derive(Debug, Default)]
pub(super) struct ReadAhead(Mutex<VecDeque<(String, u64)>>);

impl ReadAhead {
    /// Starts read-ahead for files in `directory` that a look-up needs many blocks of. Keys must be
    /// in order. Failures are ignored: the look-up then reads what it needs.
    pub(super) fn begin(
        &self,
        directory: &Path,
        files: impl IntoIterator<Item = LiveFile>,
        keys: &[&[u8]],
    ) {
        for file in files {
            let bytes = file.size as u64;
            if keys_in(&file, keys) * BYTES_LIKE_A_BLOCK >= bytes && self.is_due(&file.name, bytes)
            {
                let path = directory.join(file.name.trim_start_matches('/'));
                if let Ok(file) = File::open(path) {
                    advise(&file, bytes);
                }
            }
        }
    }

    /// Whether to read a file ahead now; if so, remembers it as read.
    fn is_due(&self, name: &str, bytes: u64) -> bool {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = recent.iter().position(|(file, _)| file == name);
        // A file in use also stays in the page cache.
        let used = place.and_then(|place| recent.remove(place));
        let is_due = used.is_none();
        recent.push_back(used.unwrap_or_else(|| (name.to_owned(), bytes)));
        let mut all: u64 = recent.iter().map(|(_, bytes)| bytes).sum();
        while all > RECENT_BYTES
            && recent.len() > 1
            && let Some((_, bytes)) = recent.pop_front()
        {
            all -= bytes;
        }
        is_due
    }
}

/// How many of the sorted keys fall in a file's range.
fn keys_in(file: &LiveFile, keys: &[&[u8]]) -> u64 {
    let (Some(first), Some(last)) = (&file.start_key, &file.end_key) else {
        return 0;
    };
    let before = keys.partition_point(|key| *key < first.as_slice());
    let up_to_last = keys.partition_point(|key| *key <= last.as_slice());
    up_to_last.saturating_sub(before) as u64
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn advise(file: &File, bytes: u64) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    /// Linux reads only up to its read-ahead size (`read_ahead_kb`, this by default) per call, and
    /// ignores the rest.
    const AT_ONCE: i64 = 128 * 1024;
    let mut offset = 0;
    while u64::try_from(offset).is_ok_and(|offset| offset < bytes) {
        let _ = posix_fadvise(
            file,
            offset,
            AT_ONCE,
            PosixFadviseAdvice::POSIX_FADV_WILLNEED,
        );
        offset += AT_ONCE;
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn advise(_file: &File, _bytes: u64) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_ahead_once_as_long_as_it_may_be_in_the_page_cache() {
        let reading = ReadAhead::default();
        assert!(reading.is_due("/1.sst", RECENT_BYTES / 2));
        assert!(!reading.is_due("/1.sst", RECENT_BYTES / 2));
        assert!(reading.is_due("/2.sst", RECENT_BYTES / 2));
        // The first file was used last, so the other is evicted.
        assert!(!reading.is_due("/1.sst", RECENT_BYTES / 2));
        assert!(reading.is_due("/3.sst", RECENT_BYTES / 2));
        assert!(!reading.is_due("/1.sst", RECENT_BYTES / 2));
        assert!(reading.is_due("/2.sst", RECENT_BYTES / 2));
        // A file larger than the whole window must not be read again and again.
        assert!(reading.is_due("/4.sst", RECENT_BYTES * 2));
        assert!(!reading.is_due("/4.sst", RECENT_BYTES * 2));
    }

    #[test]
    fn keys_are_counted_from_the_first_to_the_last_of_a_file() {
        let file = |first: &str, last: &str| LiveFile {
            column_family_name: String::new(),
            name: String::new(),
            size: 0,
            level: 0,
            start_key: Some(first.into()),
            end_key: Some(last.into()),
            num_entries: 0,
            num_deletions: 0,
        };
        let keys = ["b", "d", "f"].map(str::as_bytes);
        for ((first, last), count) in [
            (("a", "z"), 3),
            (("b", "d"), 2),
            (("c", "c"), 0),
            (("f", "g"), 1),
            (("g", "z"), 0),
        ] {
            assert_eq!(keys_in(&file(first, last), &keys), count, "{first} {last}");
        }
    }
}
