//! The limit on open files and connections.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use crate::error::{Advice, Error};

/// Maximum open files for the store.
const MOST_OF_STORE: rlim_t = 512;
/// RocksDB needs at least this many.
const FEWEST_OF_STORE: rlim_t = 32;
/// Maximum open files for a scan; each has a buffer.
const MOST_OF_SCAN: rlim_t = 256;
/// A scan divides larger files again, so a few will do.
const FEWEST_OF_SCAN: rlim_t = 8;
/// Reserved for connections and everything else.
const OF_ANYTHING_ELSE: rlim_t = 64;

/// Raises the soft limit to the hard limit. Many systems set the soft limit low for the sake of
/// programs that cannot handle large descriptors.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if even the hard limit is too low.
pub(crate) fn raise_limit() -> Result<(), Error> {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return Ok(());
    };
    if soft < hard {
        // If raising it fails, the current limit may still be enough.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |limits| limits.0);
    match limit < FEWEST_OF_STORE + OF_ANYTHING_ELSE {
        true => Err(
            Error::configuration(format!("this process may open only {limit} files"))
                .with(Advice::RaiseOpenFiles),
        ),
        false => Ok(()),
    }
}

/// Number of files the store may keep open.
pub(crate) fn of_store() -> i32 {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(MOST_OF_STORE, |limits| limits.0);
    let files = limit.saturating_sub(OF_ANYTHING_ELSE);
    i32::try_from(files.clamp(FEWEST_OF_STORE, MOST_OF_STORE)).unwrap_or(i32::MAX)
}

/// Number of files in which a scan may have the versions of rows meet; the store needs most of the others.
pub(crate) fn of_scan() -> u64 {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(MOST_OF_SCAN, |limits| limits.0);
    (limit / 8).clamp(FEWEST_OF_SCAN, MOST_OF_SCAN)
}

/// Whether the message of an operating system error means too many open files.
pub(crate) fn are_too_many(message: &str) -> bool {
    message.contains("Too many open files") || message.contains("os error 24")
}
