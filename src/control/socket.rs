//! Where the socket is.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Its name in the directory of a month's state.
pub(super) const NAME: &str = "control.sock";

/// Does something with the path of the socket. The address of a socket has at most 107 bytes, and the
/// directory may have a longer path: on Linux there is a short one to every directory that is open.
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
