//! How many files and connections the process may have open.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use crate::error::{Advice, Error};

/// Open files of the store at most.
const MOST_OF_STORE: rlim_t = 512;
/// RocksDB needs some whatever there is.
const FEWEST_OF_STORE: rlim_t = 32;
/// Who has more than this many has enough for connections, too.
const OF_ANYTHING_ELSE: rlim_t = 64;

/// Raises the limit as far as the operating system lets a user. Many systems set it low, for the sake
/// of programs that do not expect a large number.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) where it is too low all the same.
pub(crate) fn raise_limit() -> Result<(), Error> {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return Ok(());
    };
    if soft < hard {
        // If it cannot be raised, what there is may be enough.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |limits| limits.0);
    match limit < FEWEST_OF_STORE + OF_ANYTHING_ELSE {
        true => Err(Error::configuration(format!(
            "this process may open only {limit} files at once"
        ))
        .with(Advice::RaiseOpenFiles)),
        false => Ok(()),
    }
}

/// How many of them the store may have.
pub(crate) fn of_store() -> i32 {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(MOST_OF_STORE, |limits| limits.0);
    let files = limit.saturating_sub(OF_ANYTHING_ELSE);
    i32::try_from(files.clamp(FEWEST_OF_STORE, MOST_OF_STORE)).unwrap_or(i32::MAX)
}

/// Whether an error of the operating system says that there are too many.
pub(crate) fn are_too_many(message: &str) -> bool {
    message.contains("Too many open files") || message.contains("os error 24")
}
