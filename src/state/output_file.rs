//! Writes a file that the user names, at the end of the work. A regular file is replaced as a whole if
//! possible; a device, a pipe or a mounted file is written in place. Links are followed, and `-` is
//! standard output.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{AccessFlags, access};

/// Maximum links to follow, as in Linux.
const MOST_LINKS: usize = 40;
/// How long to wait for a reader of a pipe.
const PATIENCE: Duration = Duration::from_secs(10);
/// Mode of a new file that others may read, before the umask.
pub(super) const PUBLIC: u32 = 0o666;
/// Mode of a new file that may quote rows.
pub(super) const PRIVATE: u32 = 0o600;

/// The target of a path.
enum Output {
    /// Nothing yet.
    New(PathBuf),
    /// A regular file, to be replaced if possible.
    Regular(PathBuf, Metadata),
    /// A device, a pipe, or something else that is written in place.
    Special(PathBuf),
    /// A descriptor of this process, such as /dev/stdout: earlier output to it stays.
    Descriptor(PathBuf),
}

/// Checks in advance that `path` can be written.
///
/// # Errors
/// The I/O error that writing would meet.
pub(super) fn require_writable(path: &Path) -> io::Result<()> {
    match place(path)? {
        Output::New(path) => {
            let directory = directory_of(&path);
            match tempfile::NamedTempFile::new_in(directory) {
                Ok(_) => Ok(()),
                Err(_) if !directory.is_dir() => Err(io::Error::new(
                    ErrorKind::NotFound,
                    format!("there is no directory {}", directory.display()),
                )),
                Err(error) => Err(error),
            }
        }
        Output::Regular(path, _) => OpenOptions::new().write(true).open(path).map(drop),
        Output::Special(path) | Output::Descriptor(path) => Ok(access(&path, AccessFlags::W_OK)?),
    }
}

/// Whether two paths lead to the same file or stream: by name, or by inode if it exists. A device such as
/// `/dev/null` does not count, since it has nothing to overwrite.
///
/// # Errors
/// The I/O error if a path cannot be resolved.
pub(super) fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let name = |path: &Path| {
        let directory = directory_of(path).canonicalize()?;
        Ok::<_, io::Error>(directory.join(path.file_name().unwrap_or_default()))
    };
    Ok(match (place(one)?, place(other)?) {
        (Output::Regular(_, one), Output::Regular(_, other)) => {
            (one.dev(), one.ino()) == (other.dev(), other.ino())
        }
        (Output::Special(one), Output::Special(other)) => {
            let is_pipe = fs::metadata(&one)?.file_type().is_fifo();
            is_pipe && name(&one)? == name(&other)?
        }
        (Output::New(one), Output::New(other))
        | (Output::Descriptor(one), Output::Descriptor(other)) => name(&one)? == name(&other)?,
        _ => false,
    })
}

/// Writes a file. A regular one is written whole or not at all if it can be replaced; a new one gets `mode`.
///
/// # Errors
/// The I/O error if the file cannot be written.
pub(super) fn write(path: &Path, bytes: &[u8], new_mode: u32) -> io::Result<()> {
    match place(path)? {
        Output::New(path) => {
            let mode = Permissions::from_mode(new_mode);
            let mut file = tempfile::Builder::new()
                .permissions(mode)
                .tempfile_in(directory_of(&path))?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        }
        Output::Regular(path, before) => match replace(&path, &before, bytes) {
            Ok(true) => Ok(()),
            Ok(false) => write_in_place(&path, bytes),
            Err(error) => Err(error),
        },
        Output::Special(path) => {
            let mut file = open_special(&path)?;
            file.write_all(bytes)
        }
        // Do not reopen it: writing would start over at its first byte.
        Output::Descriptor(path) if path.ends_with("1") => {
            let mut output = io::stdout().lock();
            output.write_all(bytes)?;
            output.flush()
        }
        Output::Descriptor(path) if path.ends_with("2") => io::stderr().lock().write_all(bytes),
        Output::Descriptor(path) => {
            let mut file = OpenOptions::new().append(true).open(path)?;
            file.write_all(bytes)
        }
    }
}

/// Follows links one by one, since their target need not exist, and the link of a descriptor shows the name
/// of the file behind it.
fn place(path: &Path) -> io::Result<Output> {
    let mut path = match path == Path::new("-") {
        true => PathBuf::from("/dev/stdout"),
        false => path.to_owned(),
    };
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(ErrorKind::IsADirectory.into());
    }
    for _ in 0..MOST_LINKS {
        if is_descriptor(&path) {
            return Ok(Output::Descriptor(path));
        }
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                let target = fs::read_link(&path)?;
                path = directory_of(&path).join(target);
            }
            Ok(found) if found.is_dir() => return Err(ErrorKind::IsADirectory.into()),
            Ok(found) if found.is_file() => return Ok(Output::Regular(path, found)),
            Ok(_) => return Ok(Output::Special(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Output::New(path)),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("its symbolic links form a loop"))
}

/// Whether the path is `/proc/self/fd/N`.
fn is_descriptor(path: &Path) -> bool {
    let descriptors = Path::new("/proc/self/fd").canonicalize();
    descriptors.is_ok_and(|descriptors| {
        let directory = directory_of(path).canonicalize();
        directory.is_ok_and(|directory| directory == descriptors)
    })
}

/// Replaces a file by a new one of the same mode and owner. Returns whether that was possible.
fn replace(path: &Path, before: &Metadata, bytes: &[u8]) -> io::Result<bool> {
    let mode = Permissions::from_mode(before.mode() & 0o7777);
    let Ok(mut file) = tempfile::NamedTempFile::new_in(directory_of(path)) else {
        return Ok(false);
    };
    let made = file.as_file().metadata()?;
    // A hard link elsewhere would keep the old content, and the owner would not see the new file.
    let is_alike = before.nlink() == 1 && (before.uid(), before.gid()) == (made.uid(), made.gid());
    if !is_alike || file.as_file().set_permissions(mode).is_err() {
        return Ok(false);
    }
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    // A mounted file cannot be replaced.
    Ok(file.persist(path).is_ok())
}

fn write_in_place(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Opens a file that is not regular. Does not block forever on a pipe that nobody reads.
fn open_special(path: &Path) -> io::Result<File> {
    let is_pipe = fs::metadata(path)?.file_type().is_fifo();
    let started = Instant::now();
    loop {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
        match options.open(path) {
            Ok(file) => {
                let flags = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL)?);
                fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
                return Ok(file);
            }
            Err(error) if is_pipe && is_without_reader(&error) => {
                if started.elapsed() > PATIENCE {
                    return Err(io::Error::other("nobody reads from this pipe"));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_without_reader(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::ENXIO as i32)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_new_file_heeds_the_umask_and_an_old_one_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report");
        let like_others = directory.path().join("other");
        fs::write(&like_others, "").unwrap();
        require_writable(&path).unwrap();
        assert!(!path.exists());
        write(&path, b"first", PUBLIC).unwrap();
        assert_eq!(mode(&path), mode(&like_others));
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        write(&path, b"second", PUBLIC).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(mode(&path), 0o640);
    }

    #[test]
    fn links_are_followed_also_to_what_is_not_there_yet() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (
            directory.path().join("report"),
            directory.path().join("link"),
        );
        symlink("report", &link).unwrap();
        for text in ["first", "second"] {
            require_writable(&link).unwrap();
            write(&link, text.as_bytes(), PUBLIC).unwrap();
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        symlink("circle", directory.path().join("circle")).unwrap();
        assert!(require_writable(&directory.path().join("circle")).is_err());
    }

    #[test]
    fn another_name_of_the_file_has_what_is_written_too() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (
            directory.path().join("report"),
            directory.path().join("other"),
        );
        fs::write(&path, "a longer text than the new one").unwrap();
        fs::hard_link(&path, &other).unwrap();
        write(&path, b"new", PUBLIC).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"new");
    }

    #[test]
    fn one_file_by_any_two_names_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        symlink("new", at("link")).unwrap();
        let same = |one: &str, other: &str| is_same(&at(one), &at(other)).unwrap();
        // Nothing is there yet, and then it is.
        for _ in 0..2 {
            assert!(same("new", "new") && same("new", "sub/../new") && same("new", "link"));
            assert!(!same("new", "other") && !same("new", "sub/new"));
            fs::write(at("new"), "").unwrap();
        }
        fs::hard_link(at("new"), at("second")).unwrap();
        assert!(same("new", "second"));
        nix::unistd::mkfifo(&at("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        assert!(same("pipe", "pipe") && !same("pipe", "new"));
        let [output, dash, errors, null] =
            ["/dev/stdout", "-", "/dev/stderr", "/dev/null"].map(Path::new);
        assert!(is_same(null, output).is_ok_and(|same| !same));
        // A test may have both in one file.
        assert!(is_same(output, dash).unwrap());
        assert!(!is_same(null, null).unwrap());
        assert!(!is_same(output, errors).unwrap());
    }

    #[test]
    fn devices_and_pipes_stay_what_they_are() {
        let null = Path::new("/dev/null");
        require_writable(null).unwrap();
        write(null, b"text", PUBLIC).unwrap();
        assert!(fs::metadata(null).unwrap().file_type().is_char_device());

        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::from_bits_truncate(0o600)).unwrap();
        require_writable(&pipe).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || {
                let mut text = String::new();
                File::open(pipe).unwrap().read_to_string(&mut text).unwrap();
                text
            }
        });
        // More than a pipe holds.
        let text = "x".repeat(300_000);
        write(&pipe, text.as_bytes(), PUBLIC).unwrap();
        assert_eq!(reader.join().unwrap(), text);
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }

    #[test]
    fn what_was_written_to_a_descriptor_before_stays() {
        use std::os::fd::AsRawFd;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("output");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"summary\n").unwrap();
        let descriptor = PathBuf::from(format!("/dev/fd/{}", file.as_raw_fd()));
        require_writable(&descriptor).unwrap();
        write(&descriptor, b"report\n", PUBLIC).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "summary\nreport\n");
    }
}
