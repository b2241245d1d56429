//! Advice for file system errors.

use crate::error::Advice;
use crate::memory::open_files;

/// What to do about a file system error, if anything.
pub(crate) fn advice_on_files(error: &std::io::Error) -> Option<Advice> {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => Some(Advice::MakeRoom),
        _ => advice_on_words(&error.to_string()),
    }
}

/// The same, if only the error's text is known.
pub(crate) fn advice_on_words(message: &str) -> Option<Advice> {
    if message.contains("No space left") {
        return Some(Advice::MakeRoom);
    }
    open_files::are_too_many(message).then_some(Advice::RaiseOpenFiles)
}
