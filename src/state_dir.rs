//! The state directory: `STATE_DIR/<partition>/`, readable by its owner only,
//! because it holds user data.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::error::Error;
use crate::memory::ByteSize;
use crate::options::Partition;

/// Read, write and enter: the owner only.
const OWNER_ONLY: u32 = 0o700;

/// The directory of one partition's state.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Makes the directory, or takes the one that is there.
    ///
    /// # Errors
    /// [`Error::Configuration`] where it cannot be made or written to.
    pub fn prepare(root: &Path, partition: Partition) -> Result<Self, Error> {
        let path = root.join(partition.to_string());
        let wrong = |error: std::io::Error| {
            Error::Configuration(format!(
                "the state directory {} cannot be used: {error}; name another one with --state-dir",
                path.display()
            ))
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(OWNER_ONLY)
            .create(&path)
            .map_err(wrong)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(OWNER_ONLY))
            .map_err(wrong)?;
        tempfile::tempfile_in(&path).map_err(wrong)?;
        Ok(Self { path })
    }

    /// Where the trace store is.
    pub fn trace_store(&self) -> PathBuf {
        self.path.join("traces")
    }

    /// Removes the trace store, if there is one.
    ///
    /// # Errors
    /// [`Error::Failed`] where the file system does not let it.
    pub fn remove_trace_store(&self) -> Result<(), Error> {
        let store = self.trace_store();
        match std::fs::remove_dir_all(&store) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::failed(
                format!("the trace store {} cannot be removed", store.display()),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// Makes sure that the disk has room for a store of about `needed` bytes.
    ///
    /// # Errors
    /// [`Error::Configuration`] where it has not.
    pub fn require_space(&self, needed: u64) -> Result<(), Error> {
        let Ok(disk) = statvfs(&self.path) else {
            return Ok(());
        };
        // Both are u64 on Linux and u32 elsewhere.
        #[allow(clippy::useless_conversion)]
        let available = u64::from(disk.blocks_available()) * u64::from(disk.fragment_size());
        if available < needed {
            return Err(Error::Configuration(format!(
                "the traces of this partition need about {} of disk, and {} has {} left: name a \
                 state directory on a larger disk with --state-dir",
                ByteSize(needed),
                self.path.display(),
                ByteSize(available)
            )));
        }
        Ok(())
    }
}
