//! The state directory: `STATE_DIR/<partition>/`, or `STATE_DIR/<partition>-3of8/` for a shard. Only its owner
//! can read it, since it holds user data, and only one process at a time uses it.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;

use crate::error::Error;
use crate::memory::ByteSize;
use crate::partition::{Partition, ShareOfMonth};

/// Mode that gives only the owner access.
const OWNER_ONLY: u32 = 0o700;

/// The commands whose outcome is kept, in the usual order of use.
pub(super) const LEAVE_FINDINGS: [&str; 2] = ["verify", "repair"];

/// What the names of directories begin with in which the states of a ClickHouse cluster's shards are.
pub(crate) const OF_CLUSTER: &str = "shard-";

/// What the name of a dry run's directory ends with.
const DRY_RUN: &str = "-dry-run";

/// The location of the state of a partition, of one of its shards, or of a dry run. It need not exist.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PartitionDir {
    /// The share of the partition.
    pub share: ShareOfMonth,
    /// Whether it belongs to a dry run.
    pub dry_run: bool,
    /// The directory.
    pub path: PathBuf,
}

impl PartitionDir {
    /// The directory in `root` for this share of a partition. A dry run has its own, so that it never gets in
    /// the way of a real run.
    pub(crate) fn new(root: &Path, share: ShareOfMonth, dry_run: bool) -> Self {
        let end = if dry_run { DRY_RUN } else { "" };
        let path = root.join(format!("{}{end}", share.name()));
        Self {
            share,
            dry_run,
            path,
        }
    }

    /// The directory in `root` for a repair of this partition, or a dry run of one.
    pub(crate) fn of_repair(root: &Path, partition: Partition, dry_run: bool) -> Self {
        let end = if dry_run { DRY_RUN } else { "" };
        Self {
            share: ShareOfMonth::whole(partition),
            dry_run,
            path: root.join(format!("{partition}-repair{end}")),
        }
    }

    /// The directories in `root`, oldest partition first.
    ///
    /// # Errors
    /// The I/O error if `root` cannot be read.
    pub(crate) fn all(root: &Path) -> std::io::Result<Vec<Self>> {
        let mut directories = Vec::new();
        for entry in std::fs::read_dir(root)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let (share, dry_run) = match name.strip_suffix(DRY_RUN) {
                Some(share) => (share, true),
                None => (name, false),
            };
            // Anything else in there is not ours.
            if let Some(share) = ShareOfMonth::of_name(share)
                && entry.path().is_dir()
            {
                directories.push(Self::new(root, share, dry_run));
            }
        }
        directories.sort();
        Ok(directories)
    }

    /// The same, with those of the shards of a ClickHouse cluster: see [`state_roots`].
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn all_below(root: &Path) -> std::io::Result<Vec<Self>> {
        let mut directories = Vec::new();
        for root in state_roots(root)? {
            directories.extend(Self::all(&root)?);
        }
        Ok(directories)
    }

    /// Number of the ClickHouse shard, if it lies in the directory of one.
    pub(crate) fn cluster_shard(&self) -> Option<u32> {
        let root = self.path.parent()?.file_name()?.to_str()?;
        root.strip_prefix(OF_CLUSTER)?.parse().ok()
    }

    /// The directories in `root` of all runs that have written something of this partition: of all its
    /// days, or of those of shards.
    pub(crate) fn of_partition(root: &Path, partition: Partition) -> Vec<Self> {
        // Without a directory there is no run.
        let mut directories = Self::all(root).unwrap_or_default();
        directories.retain(|one| one.share.partition == partition && !one.dry_run);
        directories
    }

    /// Path of the checkpoint.
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint")
    }

    /// Path of the last run's report.
    pub(crate) fn report(&self) -> PathBuf {
        self.path.join("report.json")
    }

    /// Path of the measurements over time.
    pub(crate) fn history(&self) -> PathBuf {
        self.path.join("history.json")
    }

    /// Path of a command's outcome for the month (`verify` or `repair`).
    pub(crate) fn finding(&self, command: &str) -> PathBuf {
        self.path.join(format!("{command}.json"))
    }

    /// Path of the trace store.
    pub(crate) fn trace_store(&self) -> PathBuf {
        self.path.join("traces")
    }

    /// Path of the lock file.
    fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// Who holds the lock, if anyone, and if the operating system tells: Linux does, for processes that this
    /// one can see.
    ///
    /// Reads only `/proc/locks`. Trying to take the lock, even a shared one for a moment, would turn away a run
    /// that starts just then, and `fcntl(F_GETLK)` does not see `flock`.
    pub(crate) fn holder(&self) -> Option<Holder> {
        let path = self.lock();
        let file = std::fs::metadata(&path).ok()?;
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        find_holder(&locks, device(file.dev()), file.ino(), &written)
    }
}

/// A state directory, followed by the directories in it for the shards of a ClickHouse cluster.
///
/// # Errors
/// The I/O error if `root` cannot be read.
pub(crate) fn state_roots(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut roots = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(OF_CLUSTER));
        if let Some(Ok(number)) = number.map(str::parse::<u32>)
            && path.is_dir()
        {
            roots.push((number, path));
        }
    }
    roots.sort();
    let shards = roots.into_iter().map(|(_, path)| path);
    Ok([root.to_owned()].into_iter().chain(shards).collect())
}

/// The process that holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its process id, if known.
    pub process: Option<u32>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            Some(process) => write!(f, "process {process}"),
            None => f.write_str("a process"),
        }
    }
}

/// Who holds the exclusive `flock` of a file, from the text of `/proc/locks`. Takes the file's device as
/// written there, its inode, and its content.
///
/// A line is `1: FLOCK  ADVISORY  WRITE 4088 fe:00:131 0 EOF`; with `->` after the number, the process is
/// still waiting. Some file systems (btrfs, overlayfs) report another device to `stat` than they write there;
/// then the process must be the one named in the file. A process in another namespace is 0.
fn find_holder(locks: &str, device: Option<String>, inode: u64, written: &str) -> Option<Holder> {
    let written = written
        .trim()
        .strip_prefix(HOLDER)
        .and_then(|number| number.parse().ok());
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") || words.nth(1) != Some("WRITE") {
            return None;
        }
        let process = words
            .next()?
            .parse::<u32>()
            .ok()
            .filter(|&process| process > 0);
        let (on_device, its_inode) = words.next()?.rsplit_once(':')?;
        let is_same = its_inode.parse::<u64>().ok() == Some(inode)
            && (device.as_deref() == Some(on_device) || (process.is_some() && process == written));
        is_same.then_some(Holder {
            process: process.or(written),
        })
    })
}

/// A device number as `/proc/locks` writes it.
#[cfg(target_os = "linux")]
fn device(number: u64) -> Option<String> {
    use nix::sys::stat::{major, minor};
    Some(format!("{:02x}:{:02x}", major(number), minor(number)))
}

#[cfg(not(target_os = "linux"))]
fn device(_number: u64) -> Option<String> {
    None
}

/// Bytes free for this user on the file system where `path` is or would be created; `None` if the operating
/// system does not tell.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let disk = path
        .ancestors()
        .find_map(|existing| statvfs(existing).ok())?;
    // Both are u64 on Linux but u32 elsewhere.
    #[allow(clippy::useless_conversion)]
    let free = u64::from(disk.blocks_available()) * u64::from(disk.fragment_size());
    Some(free)
}

/// What precedes the process id in the lock file.
const HOLDER: &str = "process ";

/// The state directory is locked by another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InUse {
    directory: PathBuf,
    /// As that process wrote it.
    holder: String,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directory = self.directory.display();
        write!(
            f,
            "the state directory {directory} is in use by {}",
            self.holder
        )
    }
}

impl From<InUse> for Error {
    fn from(in_use: InUse) -> Self {
        Error::configuration(format!(
            "{in_use}: wait for it to end, or stop it; `events-backfill status` shows how far it is"
        ))
    }
}

/// The directory of one partition's state, locked for this process.
#[derive(Debug)]
pub(crate) struct StateDir {
    directory: PartitionDir,
    /// The operating system releases it however the process ends.
    _lock: Flock<File>,
}

impl StateDir {
    /// Creates or reuses the directory and locks it. The inner error means that another process uses it.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) if it cannot be created or written.
    pub(crate) fn prepare(
        root: &Path,
        share: ShareOfMonth,
        dry_run: bool,
    ) -> Result<Result<Self, InUse>, Error> {
        Self::take(PartitionDir::new(root, share, dry_run))
    }

    /// Creates or reuses the directory of a repair and locks it.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) if it cannot be created or written, or if another process
    /// uses it.
    pub(crate) fn prepare_repair(
        root: &Path,
        partition: Partition,
        dry_run: bool,
    ) -> Result<Self, Error> {
        Self::take(PartitionDir::of_repair(root, partition, dry_run))?.map_err(Error::from)
    }

    fn take(directory: PartitionDir) -> Result<Result<Self, InUse>, Error> {
        let path = &directory.path;
        let wrong = |error: std::io::Error| {
            Error::configuration(format!(
                "the state directory {} cannot be used: {error}; choose another one with --state-dir",
                path.display()
            ))
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(OWNER_ONLY)
            .create(path)
            .map_err(wrong)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(OWNER_ONLY))
            .map_err(wrong)?;
        tempfile::tempfile_in(path).map_err(wrong)?;
        Ok(lock(&directory)?.map(|lock| Self {
            directory,
            _lock: lock,
        }))
    }

    /// Path of the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.directory.path
    }

    /// Path of the checkpoint.
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.directory.checkpoint()
    }

    /// Path of the last run's report.
    pub(crate) fn report(&self) -> PathBuf {
        self.directory.report()
    }

    /// Path of the measurements over time.
    pub(crate) fn history(&self) -> PathBuf {
        self.directory.history()
    }

    /// Removes the state of a run, if there is one: the checkpoint first, since it refers to the store.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if something cannot be removed.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        match std::fs::remove_file(self.checkpoint()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::caused(
                format!(
                    "the checkpoint {} cannot be removed",
                    self.checkpoint().display()
                ),
                error,
            )),
            _ => {
                self.forget_what_was_said();
                self.remove_work_files()
            }
        }
    }

    /// Removes the report and measurements of an earlier run, and what verify and repair said about it.
    fn forget_what_was_said(&self) {
        let findings = LEAVE_FINDINGS.map(|command| self.directory.finding(command));
        let of_run = [self.directory.report(), self.directory.history()];
        for file in of_run.into_iter().chain(findings) {
            // Usually it does not exist. If it stays, its time shows that it is older than the new run.
            let _ = std::fs::remove_file(file);
        }
    }

    fn restart_mark(&self) -> PathBuf {
        self.path().join("restart")
    }

    /// Marks the run as a restart, in case it is interrupted before its first checkpoint says so.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if the mark cannot be written.
    pub(crate) fn mark_restart(&self) -> Result<(), Error> {
        let mark = self.restart_mark();
        std::fs::write(&mark, b"").map_err(|error| {
            Error::caused(
                format!("the file {} cannot be written", mark.display()),
                error,
            )
        })
    }

    /// Whether the run is marked as a restart.
    pub(crate) fn is_restart(&self) -> bool {
        self.restart_mark().exists()
    }

    /// Removes the mark: from now on the checkpoint says it.
    pub(crate) fn forget_restart(&self) {
        // A mark that stays goes with the directory, or makes the next run a restart too.
        let _ = std::fs::remove_file(self.restart_mark());
    }

    /// Removes the directory with everything in it.
    pub(crate) fn remove(&self) {
        // Only for dry runs and finished repairs, where leftovers do no harm.
        let _ = std::fs::remove_dir_all(self.path());
    }

    /// Path of the observations whose trace is not known yet.
    pub(crate) fn deferred_rows(&self) -> PathBuf {
        self.path().join("deferred")
    }

    /// Path of the trace store.
    pub(crate) fn trace_store(&self) -> PathBuf {
        self.directory.trace_store()
    }

    /// Removes the trace store and the deferred observations.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if one of them cannot be removed.
    pub(crate) fn remove_work_files(&self) -> Result<(), Error> {
        remove(&self.deferred_rows(), "the directory of deferred rows")?;
        self.remove_trace_store()
    }

    /// Removes the trace store, if there is one.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if it cannot be removed.
    pub(crate) fn remove_trace_store(&self) -> Result<(), Error> {
        remove(&self.trace_store(), "the trace store")
    }

    /// Checks that the disk has room for a store of about `needed` bytes.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) if it has not.
    pub(crate) fn require_space(&self, needed: u64) -> Result<(), Error> {
        let Some(available) = free_bytes(self.path()) else {
            return Ok(());
        };
        if available < needed {
            return Err(Error::configuration(format!(
                "the traces of this partition need about {} of disk, but {} has only {} left: choose a \
                 state directory on a larger disk with --state-dir",
                ByteSize(needed),
                self.path().display(),
                ByteSize(available)
            )));
        }
        Ok(())
    }
}

/// Locks a state directory, or says who has locked it.
fn lock(directory: &PartitionDir) -> Result<Result<Flock<File>, InUse>, Error> {
    let path = directory.lock();
    let wrong = |error: std::io::Error| {
        Error::configuration(format!(
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
            let mut written = String::new();
            let _ = file.read_to_string(&mut written);
            return Ok(Err(InUse {
                directory: directory.path.clone(),
                holder: match written.trim() {
                    "" => "another process".to_owned(),
                    holder => holder.to_owned(),
                },
            }));
        }
        Err((_, error)) => return Err(wrong(error.into())),
    };
    let holder = format!("{HOLDER}{}\n", std::process::id());
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| lock.write_all(holder.as_bytes()))
        .map_err(wrong)?;
    Ok(Ok(lock))
}

/// Removes a directory with everything in it, if it exists.
fn remove(directory: &Path, what: &str) -> Result<(), Error> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::caused(
            format!("{what} {} cannot be removed", directory.display()),
            error,
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "\
1: POSIX  ADVISORY  WRITE 11 fe:00:100 0 EOF
2: -> FLOCK  ADVISORY  WRITE 12 fe:00:100 0 EOF
3: FLOCK  ADVISORY  READ 13 fe:00:100 0 EOF
4: FLOCK  ADVISORY  WRITE 14 fe:00:100 0 EOF
5: FLOCK  ADVISORY  WRITE 15 00:2d:101 0 EOF
6: FLOCK  ADVISORY  WRITE 0 fe:00:102 0 EOF
";

    fn holder(device: &str, inode: u64, written: &str) -> Option<Option<u32>> {
        find_holder(LOCKS, Some(device.to_owned()), inode, written).map(|holder| holder.process)
    }

    #[test]
    fn the_process_that_holds_a_lock_is_found_among_all_locks() {
        assert_eq!(holder("fe:00", 100, "process 14\n"), Some(Some(14)));
        // The number in the file may be that of another namespace.
        assert_eq!(holder("fe:00", 100, "process 7\n"), Some(Some(14)));
        assert_eq!(holder("fe:00", 100, ""), Some(Some(14)));
        assert_eq!(holder("fe:00", 102, "process 7\n"), Some(Some(7)));
        assert_eq!(holder("fe:00", 102, ""), Some(None));
        assert_eq!(holder("fe:00", 99, "process 14\n"), None);
    }

    #[test]
    fn where_the_device_is_another_one_the_process_must_be_the_one_in_the_file() {
        assert_eq!(holder("00:1f", 101, "process 15\n"), Some(Some(15)));
        assert_eq!(holder("00:1f", 101, "process 16\n"), None);
        assert_eq!(holder("00:1f", 102, "process 0\n"), None);
        assert_eq!(find_holder("", None, 1, "process 1\n"), None);
        assert_eq!(find_holder("nonsense\n1: FLOCK", None, 1, ""), None);
    }

    #[test]
    fn what_this_process_has_locked_is_locked_by_it() {
        let root = tempfile::tempdir().unwrap();
        let share = ShareOfMonth::of_name("202406-3of8").unwrap();
        let state = StateDir::prepare(root.path(), share, false);
        let state = state.unwrap().unwrap();
        let all = PartitionDir::all(root.path()).unwrap();
        assert_eq!(all, [PartitionDir::new(root.path(), share, false)]);
        if cfg!(target_os = "linux") {
            let process = Some(std::process::id());
            assert_eq!(all[0].holder(), Some(Holder { process }));
            drop(state);
            assert_eq!(all[0].holder(), None);
        }
    }

    #[test]
    fn directories_are_found_by_their_names_the_oldest_first() {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "202406",
            "202405-dry-run",
            "202312",
            "lost+found",
            "202413",
            "202405-3of8",
            "202405-3of8-dry-run",
            "202405-9of8",
            "202405-repair",
        ] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        std::fs::write(root.path().join("202401"), "a file").unwrap();
        let all = PartitionDir::all(root.path()).unwrap();
        let names: Vec<String> = all
            .iter()
            .map(|directory| format!("{} {}", directory.share, directory.dry_run))
            .collect();
        let expected = [
            "202312 false",
            "202405 true",
            "202405 3/8 false",
            "202405 3/8 true",
            "202406 false",
        ];
        assert_eq!(names, expected);
        let june = "202406".parse().unwrap();
        assert_eq!(PartitionDir::of_partition(root.path(), june).len(), 1);
        let may = "202405".parse().unwrap();
        assert_eq!(PartitionDir::of_partition(root.path(), may).len(), 1);
        assert!(PartitionDir::all(&root.path().join("nowhere")).is_err());
    }

    #[test]
    fn a_directory_that_is_not_there_yet_has_the_room_of_the_one_it_will_be_in() {
        let root = tempfile::tempdir().unwrap();
        assert!(free_bytes(&root.path().join("not/there/yet")) > Some(0));
        assert!(free_bytes(Path::new("relative")) > Some(0));
    }
}
