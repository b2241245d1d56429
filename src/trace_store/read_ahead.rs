//! Files of the store that a look-up needs many blocks of are read ahead, from one end to the other.
//!
//! Where the page cache does not hold the store, each look-up reads a block of 4 KiB from somewhere in a file.
//! Disks that are slow at that (a cloud volume does 3,000 such reads in a second) read a whole file in the time
//! of a few hundred.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rocksdb::LiveFile;

/// Keys that are worth a look at the files: fewer cost less than that.
pub(super) const FEWEST_KEYS: usize = 256;
/// Bytes of a file that are read as fast as one block from somewhere in it, at least: 128 KiB at 400 MB/s
/// take 0.3 ms.
const BYTES_LIKE_A_BLOCK: u64 = 32 * 1024;
/// Bytes of files that were read ahead last and are taken to be in the page cache still: some days for two
/// segments at once, of a month of 100 million traces.
const RECENT_BYTES: u64 = 512 * 1024 * 1024;

/// Which files were read ahead lately, the last one last, each with its bytes.
#[derive(Debug, Default)]
pub(super) struct ReadAhead(Mutex<VecDeque<(String, u64)>>);

impl ReadAhead {
    /// Has those files in a directory read ahead of which a look-up needs many blocks; its keys come in
    /// order. What does not work is left: the look-up reads what it needs.
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

    /// Whether a file is to be read ahead now; it is taken to be, from now on.
    fn is_due(&self, name: &str, bytes: u64) -> bool {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = recent.iter().position(|(file, _)| file == name);
        // What is used stays in the page cache, too.
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

/// How many of some keys, which come in order, lie in the range of a file.
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
    /// Linux begins to read no more at once than its read-ahead (`read_ahead_kb`, by default this many), and
    /// forgets the rest.
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
        // It was used last, so the other one goes.
        assert!(!reading.is_due("/1.sst", RECENT_BYTES / 2));
        assert!(reading.is_due("/3.sst", RECENT_BYTES / 2));
        assert!(!reading.is_due("/1.sst", RECENT_BYTES / 2));
        assert!(reading.is_due("/2.sst", RECENT_BYTES / 2));
        // A file that is larger than all of it is no reason to read it again.
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
