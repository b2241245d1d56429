//! The path of the socket.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// File name in a month's state directory.
pub(super) const NAME: &str = "control.sock";

/// Calls `work` with a path to the socket. A socket's address holds at most 107 bytes, which a state
/// directory's path can exceed; on Linux every open directory has a short path in `/proc`.
///
/// # Errors
/// [`io::Error`] if the directory cannot be opened, or from `work`.
pub(super) fn with_path<T>(
    directory: &Path,
    work: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let open = File::open(directory)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    match short.is_dir() {
        true => work(&short.join(NAME)),
        false => work(&directory.join(NAME)),
    }
}
