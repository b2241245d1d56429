//! What to do about errors of the file system.

use crate::memory::open_files;

/// What to do about a disk that has no room left.
pub(crate) const DISK_FULL: &str =
    ": the disk is full; make room, or name a larger one with --state-dir";

/// What to do about an error of the file system, if there is something, to be
/// put behind the error.
pub(crate) fn advice_on_files(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => DISK_FULL,
        _ if open_files::are_too_many(&error.to_string()) => open_files::ADVICE,
        _ => "",
    }
}
