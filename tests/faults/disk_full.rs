//! A state directory that has no room left, or on which the process has no right: the run says so,
//! and once that is changed, it is completed.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential;
use crate::support::differential::{Specification, ask_number, assert_complete, execute};
use crate::support::{Database, Outcome, Running, SAMPLE_PARTITION, Server, Tool};
use nix::libc::{SIGCONT, SIGSTOP};
use tempfile::TempDir;

/// Traces that fill a disk: their texts do not compress. So many on each of 28 days.
const TRACES_PER_DAY: u64 = 1_500;
const BYTES_PER_TRACE: u64 = 900;

/// How long something is waited for that comes within a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// The number of a user who owns nothing.
const NOBODY: u32 = 65_534;

/// 40 MB of traces and 2,000 observations that belong to some of them, and the table `expected`.
fn month() -> &'static Database<'static> {
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    MONTH.get_or_init(|| {
        let database = Server::shared().database("disk");
        database.load_schema();
        execute(
            &database,
            &format!(
                "INSERT INTO traces (id, project_id, timestamp, event_ts, user_id, metadata)
                 SELECT concat('trace-', toString(number)), 'project',
                     toDateTime64('2024-06-01 00:00:00', 3) + number % 28 * 86400, now64(),
                     toString(generateUUIDv4()),
                     map('key', randomPrintableASCII({BYTES_PER_TRACE}))
                 FROM numbers(28 * {TRACES_PER_DAY})"
            ),
        );
        execute(
            &database,
            "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts, name)
             SELECT concat('observation-', toString(number)), concat('trace-', toString(number * 7)),
                 'project', 'SPAN',
                 toDateTime64('2024-06-01 00:00:00', 3) + number * 7 % 28 * 86400, now64(), 'name'
             FROM numbers(2000)",
        );
        Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
        database
    })
}

/// A handful of rows, and the table `expected`.
fn small_month(name: &str) -> Database<'static> {
    let database = crate::support::small_month(name);
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    database
}

/// The program, with a new target of that name.
fn tool(database: &Database, target: &str) -> Tool {
    execute(database, &format!("CREATE TABLE {target} AS events_full"));
    Tool::new(database).args(["--partition", SAMPLE_PARTITION, "--target-table", target])
}

fn rows(database: &Database, target: &str) -> u64 {
    ask_number(database, &format!("SELECT count() FROM {target}"))
}

// -------------------------------------------------------------------------------------------------
// A disk
// -------------------------------------------------------------------------------------------------

/// A small file system in memory. It is mounted in a namespace of its own, so it takes no right to
/// mount it and it goes away by itself.
struct Disk {
    holder: Child,
    path: PathBuf,
    _mount_point: TempDir,
}

impl Disk {
    /// Mounts one with these options; none where that is not allowed.
    fn mount(options: &str) -> Option<Disk> {
        let mount_point = tempfile::tempdir().unwrap();
        // The namespace lasts as long as the process in it, which lasts as long as its input.
        let mut holder = Command::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c"])
            .arg("mount -t tmpfs -o \"$1\" tmpfs \"$0\" && echo mounted && read end")
            .arg(mount_point.path())
            .arg(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut answer = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut answer)
            .unwrap();
        if answer != "mounted\n" {
            eprintln!("skipped: a file system cannot be mounted here");
            let _ = holder.wait();
            return None;
        }
        // What a process sees below its root is open to its owner, from any namespace.
        let mut path = PathBuf::from(format!("/proc/{}/root", holder.id()));
        path.push(mount_point.path().strip_prefix("/").unwrap());
        Some(Disk {
            holder,
            path,
            _mount_point: mount_point,
        })
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Leaves room for so many bytes, about.
    fn fill_but(&self, bytes: u64) {
        let mut filler = File::create(self.filler()).unwrap();
        let full = std::io::copy(&mut std::io::repeat(b'x'), &mut filler).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
        let length = filler.metadata().unwrap().len();
        filler.set_len(length.saturating_sub(bytes)).unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    /// Where the program keeps what belongs to the month.
    fn state(&self) -> PathBuf {
        self.path.join(SAMPLE_PARTITION)
    }

    fn holds_checkpoint(&self) -> bool {
        self.state().join("checkpoint").exists()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Lets a run go on until something is so, and halts it there.
fn halt_when(run: &mut Running, what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(run.is_running(), "the run ended before {what}");
        assert!(started.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(1));
    }
    run.signal(SIGSTOP);
}

/// The number of a sentence that ends in `the traces of <number> days loaded: …`.
fn days_loaded(sentence: &str) -> Option<u64> {
    let rest = sentence.split("the traces of ").last()?;
    rest.split_once(" days loaded")?.0.parse().ok()
}

#[test]
fn a_disk_that_fills_up_while_traces_are_loaded_ends_the_run_until_there_is_room() {
    let target = "filled_while_loading";
    let Some(disk) = Disk::mount("size=128m") else {
        return;
    };
    let tool = tool(month(), target).arg("--state-dir").arg(&disk.path);
    let mut run = tool.spawn();
    // By then the disk has been looked at, and found to be large enough.
    halt_when(&mut run, "the trace store", || {
        disk.state().join("traces").exists()
    });
    let bytes_per_day = TRACES_PER_DAY * BYTES_PER_TRACE;
    disk.fill_but(28 * bytes_per_day / 2);
    run.signal(SIGCONT);
    let outcome = run.wait();
    let words = [
        "the traces of 2024-06-",
        "No space left",
        "that disk is full: free some space",
        "continue with --resume",
    ];
    let sentence = outcome.assert_one_error(1, &words);
    let days = days_loaded(sentence).unwrap();
    println!("the disk was full after {days} days");
    assert!((1..28).contains(&days), "{sentence}");
    assert_eq!(rows(month(), target), 0);
    // Without room, to go on is of no use and does no harm. Nor is there a reason to start over.
    let tool = tool.arg("--resume");
    disk.fill_but(0);
    let outcome = tool.run();
    let words = ["No space left", "that disk is full: free some space"];
    let sentence = outcome.assert_one_error(1, &words);
    assert!(!sentence.contains("--restart"), "{sentence}");
    disk.make_room();
    tool.run()
        .assert_code(0)
        .assert_stderr_contains(&format!("resuming with the traces of {days} days loaded"));
    assert_complete(month(), target);
}

#[test]
fn a_disk_that_fills_up_before_a_segment_is_done_ends_the_run_until_there_is_room() {
    let target = "filled_while_inserting";
    let Some(disk) = Disk::mount("size=128m") else {
        return;
    };
    let tool = tool(month(), target)
        .arg("--state-dir")
        .arg(&disk.path)
        .args(["--batch-size", "100"]);
    let mut run = tool.spawn();
    halt_when(&mut run, "a row", || rows(month(), target) > 0);
    let checkpoint = disk.state().join("checkpoint");
    let before = fs::read(&checkpoint).unwrap();
    disk.fill_but(0);
    run.signal(SIGCONT);
    let outcome = run.wait();
    let words = [
        "the checkpoint",
        "No space left",
        "free some space",
        "continue with --resume",
        // What is not written down is not done.
        "0 of 1 segments done",
    ];
    outcome.assert_one_error(1, &words);
    assert_eq!(
        fs::read(&checkpoint).unwrap(),
        before,
        "the last one is kept"
    );
    disk.make_room();
    tool.arg("--resume")
        .run()
        .assert_code(0)
        .assert_stderr_contains("resuming with 0 of 1 segments done");
    assert_complete(month(), target);
}

/// Files that a disk has room for, in the search for every place where there can be one too many.
const MOST_FILES: usize = 60;

#[test]
fn wherever_the_disk_ends_the_run_says_so_and_can_be_completed() {
    let Some(disk) = Disk::mount(&format!("size=64m,nr_inodes={MOST_FILES}")) else {
        return;
    };
    let database = small_month("files");
    let target = "events_full";
    let tool = Tool::new(&database)
        .args(["--partition", SAMPLE_PARTITION])
        .arg("--state-dir")
        .arg(&disk.path);
    let fillers = disk.path.join("fillers");
    let mut met = BTreeSet::new();
    let mut files = 0;
    let mut resumed = 0;
    loop {
        fs::create_dir(&fillers).unwrap();
        let mut made = 0;
        while File::create(fillers.join(made.to_string())).is_ok() {
            made += 1;
        }
        assert!(files < made, "the run still fails with {files} files");
        for number in 0..files {
            fs::remove_file(fillers.join(number.to_string())).unwrap();
        }
        let outcome = tool.run();
        fs::remove_dir_all(&fillers).unwrap();
        if outcome.code == Some(0) {
            break;
        }
        let code = outcome.code.unwrap_or_default();
        assert!((1..=2).contains(&code), "{files} files: {outcome:?}");
        let sentence = outcome.assert_one_error(code, &["No space left"]);
        println!("{files} files: {sentence}");
        for place in [
            "the state directory",
            "the lock",
            "the trace store",
            "the checkpoint",
            "the report",
        ] {
            if sentence.starts_with(&format!("error: {place}"))
                || sentence.contains(&format!(": {place}"))
            {
                met.insert(place);
            }
        }
        assert!(
            sentence.contains("free some space") || sentence.contains("--state-dir"),
            "it says what to do: {sentence}"
        );
        let outcome = if disk.holds_checkpoint() {
            resumed += 1;
            resuming(&database, &disk).run()
        } else {
            tool.run()
        };
        outcome.assert_code(0);
        assert_complete(&database, target);
        execute(&database, &format!("TRUNCATE TABLE {target}"));
        fs::remove_dir_all(disk.state()).unwrap();
        files += 1;
    }
    println!("{files} places, {resumed} times resumed: {met:?}");
    assert_complete(&database, target);
    // The checkpoint needs fewer files than the store; for it see the tests above.
    for place in ["the state directory", "the trace store"] {
        assert!(met.contains(place), "{place} in {met:?}");
    }
    assert!(resumed > 0);
}

/// The program as it continues what is on the disk.
fn resuming(database: &Database, disk: &Disk) -> Tool {
    Tool::new(database)
        .args(["--partition", SAMPLE_PARTITION, "--resume"])
        .arg("--state-dir")
        .arg(&disk.path)
}

// -------------------------------------------------------------------------------------------------
// Rights
// -------------------------------------------------------------------------------------------------

/// Runs the program as a user who owns nothing.
fn run_as_nobody(database: &Database, state_dir: &Path, arguments: &[&str]) -> Outcome {
    // The program itself may lie where nobody else can go.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("events-backfill");
    // By another process: what this one has open for writing, each program that another test starts
    // holds open for a moment, and a file that is open for writing cannot be run.
    let copy = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_events-backfill"))
        .arg(&program)
        .status();
    assert!(copy.unwrap().success());
    let started = Instant::now();
    let output = Command::new(program)
        .args(["--partition", SAMPLE_PARTITION])
        .args(["--no-root-spans", "--no-experiments"])
        .args(arguments)
        .arg("--state-dir")
        .arg(state_dir)
        .env_clear()
        .env("CLICKHOUSE_URL", database.server.url())
        .env("CLICKHOUSE_DB", &database.name)
        .current_dir(directory.path())
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        duration: started.elapsed(),
    }
}

/// Whether this process is root, and so can run the program as another user.
fn is_root() -> bool {
    let own = tempfile::tempdir().unwrap();
    let is_root = own.path().metadata().unwrap().uid() == 0;
    if !is_root {
        eprintln!("skipped: only root can run the program as another user");
    }
    is_root
}

/// A run of a handful of rows that the server ended after the first ones, for want of parts.
fn unfinished_run(database: &Database) -> Tool {
    let settings = "ALTER TABLE events_full MODIFY SETTING parts_to_throw_insert";
    execute(database, &format!("{settings} = 1"));
    differential::keep_versions_apart(database, &["events_full"]);
    let tool = Tool::new(database)
        .args(["--partition", SAMPLE_PARTITION, "--batch-size", "1"])
        .env("STREAM_BLOCK_SIZE", "1")
        .env("MAX_RETRIES", "0");
    tool.run()
        .assert_one_error(1, &["Too many parts", "--resume"]);
    execute(database, &format!("{settings} = 1000"));
    assert!(rows(database, "events_full") > 0);
    // Only the owner may enter it; the directory above is the administrator's.
    fs::set_permissions(tool.directory(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(tool.state_dir(), Permissions::from_mode(0o777)).unwrap();
    tool
}

#[test]
fn a_state_directory_in_which_nothing_may_be_made_is_told() {
    if !is_root() {
        return;
    }
    let database = small_month("forbidden");
    let directory = tempfile::tempdir().unwrap();
    // To enter it is allowed, or is not.
    for mode in [0o755, 0o700] {
        fs::set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
        let state = directory.path().join("state");
        let path = state.display().to_string();
        let outcome = run_as_nobody(&database, &state, &[]);
        let words = ["state directory", &path, "Permission denied", "--state-dir"];
        outcome.assert_one_error(2, &words);
        assert!(!state.exists());
    }
    assert_eq!(rows(&database, "events_full"), 0);
}

#[test]
fn the_state_of_another_user_is_neither_continued_nor_touched() {
    if !is_root() {
        return;
    }
    let database = small_month("of_another_user");
    let tool = unfinished_run(&database);
    let state = tool.state_dir().join(SAMPLE_PARTITION);
    let checkpoint = fs::read(state.join("checkpoint")).unwrap();
    let written = rows(&database, "events_full");
    let path = state.display().to_string();
    for arguments in [&[][..], &["--resume"], &["--restart"]] {
        let outcome = run_as_nobody(&database, &tool.state_dir(), arguments);
        let words = ["state directory", &path, "not permitted", "--state-dir"];
        outcome.assert_one_error(2, &words);
    }
    assert_eq!(fs::read(state.join("checkpoint")).unwrap(), checkpoint);
    assert_eq!(rows(&database, "events_full"), written);
    let tool = tool.arg("--resume").without_env("MAX_RETRIES");
    tool.run().assert_code(0);
    assert_complete(&database, "events_full");
}

#[test]
fn files_of_another_user_in_the_state_directory_are_told_one_after_another() {
    if !is_root() {
        return;
    }
    let database = small_month("files_of_another_user");
    let tool = unfinished_run(&database);
    let state = tool.state_dir().join(SAMPLE_PARTITION);
    let store = state.join("traces");
    let written = rows(&database, "events_full");
    fs::set_permissions(&store, Permissions::from_mode(0o700)).unwrap();
    let give_away = |path: &Path| chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    let resume = || run_as_nobody(&database, &tool.state_dir(), &["--resume"]);
    give_away(&state);
    let lock = state.join("lock").display().to_string();
    resume().assert_one_error(2, &[&lock, "Permission denied"]);
    give_away(&state.join("lock"));
    let path = state.display().to_string();
    let words = ["checkpoint", &path, "Permission denied"];
    resume().assert_one_error(2, &words);
    give_away(&state.join("checkpoint"));
    let path = store.display().to_string();
    let words = ["trace store", &path, "Permission denied"];
    resume().assert_one_error(1, &words);
    assert_eq!(rows(&database, "events_full"), written);
    give_away(&store);
    for entry in fs::read_dir(&store).unwrap() {
        give_away(&entry.unwrap().path());
    }
    // Where observations wait whose trace is not known.
    let late = state.join("deferred");
    let path = late.display().to_string();
    resume().assert_one_error(1, &[&path, "Permission denied"]);
    // Whoever is given all of it can go on with it.
    give_away(&late);
    for entry in fs::read_dir(&late).unwrap() {
        give_away(&entry.unwrap().path());
    }
    resume().assert_code(0);
    assert_complete(&database, "events_full");
}
