//! The state directory: `STATE_DIR/<partition>/`, readable by its owner only,
//! because it holds user data, and used by one process at a time.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;

use crate::error::Error;
use crate::late::LateRows;
use crate::memory::ByteSize;
use crate::options::Partition;

/// Read, write and enter: the owner only.
const OWNER_ONLY: u32 = 0o700;

/// The directory of one partition's state, locked for this process.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// The operating system releases it when the process ends, however it ends.
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes the directory, or takes the one that is there. A dry run has one of
    /// its own, so that it never stands in the way of a real one.
    ///
    /// # Errors
    /// [`Error::Configuration`] where it cannot be made or written to, or
    /// another process uses it.
    pub fn prepare(root: &Path, partition: Partition, dry_run: bool) -> Result<Self, Error> {
        let path = root.join(match dry_run {
            true => format!("{partition}-dry-run"),
            false => partition.to_string(),
        });
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
        let lock = lock(&path)?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the checkpoint is.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint")
    }

    /// Where the report of the last run is.
    pub fn report(&self) -> PathBuf {
        self.path.join("report.json")
    }

    /// Removes the checkpoint and the trace store, if they are there; the
    /// checkpoint first, since it speaks of the store.
    ///
    /// # Errors
    /// [`Error::Failed`] where the file system does not let it.
    pub fn clear(&self) -> Result<(), Error> {
        match std::fs::remove_file(self.checkpoint()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::failed(
                format!(
                    "the checkpoint {} cannot be removed",
                    self.checkpoint().display()
                ),
                error,
            )),
            _ => self.remove_work_files(),
        }
    }

    /// Removes the directory with all that is in it.
    pub fn remove(&self) {
        // Only a dry run's: what is left of it is in nobody's way.
        let _ = std::fs::remove_dir_all(&self.path);
    }

    /// Where observations wait whose trace is not known.
    pub fn late_rows(&self) -> LateRows {
        LateRows::new(self.path.join("late"))
    }

    /// Where the trace store is.
    pub fn trace_store(&self) -> PathBuf {
        self.path.join("traces")
    }

    /// Removes the trace store, and observations that wait.
    ///
    /// # Errors
    /// [`Error::Failed`] where the file system does not let it.
    pub fn remove_work_files(&self) -> Result<(), Error> {
        self.late_rows()
            .remove_all()
            .map_err(|error| Error::Failed(error.to_string()))?;
        self.remove_trace_store()
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

/// Takes the lock of a state directory, or says who has it.
fn lock(directory: &Path) -> Result<Flock<File>, Error> {
    let path = directory.join("lock");
    let wrong = |error: std::io::Error| {
        Error::Configuration(format!(
            "the lock {} cannot be used: {error}",
            path.display()
        ))
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(wrong)?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(Error::Configuration(format!(
                "the state directory {} is in use by {}: wait for it to end, or name another \
                 directory with --state-dir",
                directory.display(),
                if holder.is_empty() {
                    "another process"
                } else {
                    holder.trim()
                }
            )));
        }
        Err((_, error)) => return Err(wrong(error.into())),
    };
    let holder = format!("process {}\n", std::process::id());
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| lock.write_all(holder.as_bytes()))
        .map_err(wrong)?;
    Ok(lock)
}
