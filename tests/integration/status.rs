//! What `status` tells of the runs in a state directory, while they go on too, and that none of
//! them notices it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::support::proxy::{Action, FOREVER, Fault, Place, Proxy};
use crate::support::{Database, Outcome, Running, SAMPLE_PARTITION, Server, Tool, small_month};
use serde_json::{Value, json};

/// In the statement that reads a segment, and in no other.
const SEGMENT: &str = "FINAL ARRAY JOIN [1]";

/// Enough for several segments, the least of which has 65,536 rows where there is one part.
const OBSERVATIONS: u64 = 150_000;

/// How long something is waited for that comes within a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sources that nobody changes, for several segments.
fn month() -> &'static Database<'static> {
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    MONTH.get_or_init(|| {
        let database = Server::shared().sample_month("status", OBSERVATIONS);
        // Few parts, so that segments may be short.
        database.query("OPTIMIZE TABLE observations FINAL").unwrap();
        database
    })
}

/// A run of the sample month into the database, through the proxy, one segment at a time.
fn tool(database: &Database, proxy: &Proxy) -> Tool {
    Tool::new(database)
        .env("CLICKHOUSE_URL", proxy.url())
        .args(["--partition", SAMPLE_PARTITION])
        .args(["--segment-rows", "50000", "--concurrency", "1"])
}

/// `status` of a state directory.
fn status(state_dir: &Path, arguments: &[&str]) -> Outcome {
    Tool::unconfigured()
        // It has no such flag, and this keeps `Tool` from giving it.
        .env("REPORT", "none")
        .args(["status", "--state-dir"])
        .arg(state_dir)
        .args(arguments.iter().copied())
        .run()
}

/// What `status --json` says of the only partition there is.
#[track_caller]
fn only_partition(state_dir: &Path) -> Value {
    let outcome = status(state_dir, &["--json"]);
    outcome.assert_code(0);
    let all = parse(&outcome);
    let partitions = all["partitions"].as_array().expect("it is an array");
    assert_eq!(partitions.len(), 1, "{all:#}");
    partitions[0].clone()
}

#[track_caller]
fn parse(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}\n{outcome:?}"))
}

/// The line of the table that begins with this partition.
#[track_caller]
fn line<'a>(outcome: &'a Outcome, partition: &str) -> &'a str {
    outcome
        .stdout
        .lines()
        .find(|line| line.starts_with(partition))
        .unwrap_or_else(|| panic!("{partition}\n{outcome:?}"))
}

/// Waits until a fault has happened to a run that goes on.
#[track_caller]
fn wait_for(fault: &Fault, run: &mut Running) {
    let started = Instant::now();
    while fault.count() == 0 {
        assert!(run.is_running(), "the run ended before it got there");
        assert!(started.elapsed() < PATIENCE, "the run does not get there");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Everything in a directory: names with sizes, times of change and contents.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        if path.is_dir() {
            files.extend(snapshot(&path));
            files.insert(path, (changed, Vec::new()));
        } else {
            // Of a socket there is nothing to read.
            let is_file = fs::metadata(&path).unwrap().is_file();
            let content = is_file.then(|| fs::read(&path).unwrap());
            files.insert(path, (changed, content.unwrap_or_default()));
        }
    }
    files
}

#[test]
fn without_runs_there_is_nothing_to_tell() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = directory.path().join("nowhere");
    let start = "start one with `events-backfill --partition YYYYMM`";
    status(&nowhere, &[]).assert_one_error(2, &["nowhere", "no run", start, "--state-dir"]);
    assert!(!nowhere.exists(), "it was made");
    let file = directory.path().join("file");
    fs::write(&file, "no directory").unwrap();
    status(&file, &[]).assert_one_error(2, &["file", "--state-dir"]);

    // What else is in it is somebody else's.
    fs::create_dir(directory.path().join("lost+found")).unwrap();
    let outcome = status(directory.path(), &[]);
    outcome.assert_code(0);
    let place = directory.path().display();
    let words = format!("no run has been started in {place}: {start}");
    assert!(outcome.stdout.starts_with(&words), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("--state-dir"), "{}", outcome.stdout);
    assert_eq!(outcome.stdout.lines().count(), 1);
    let outcome = status(directory.path(), &["--json"]);
    outcome.assert_code(0);
    assert_eq!(parse(&outcome)["partitions"], json!([]));
}

#[test]
fn the_state_directory_is_where_a_run_would_have_it() {
    let tool = Tool::unconfigured().env("REPORT", "none").arg("status");
    let outcome = tool.env("STATE_DIR", "from-the-environment").run();
    outcome.assert_one_error(2, &["from-the-environment"]);
}

#[test]
fn a_resume_says_that_it_keeps_the_segments_whatever_is_asked_for() {
    let database = month();
    let target = "resized";
    database
        .query(&format!("CREATE TABLE {target} AS events_full"))
        .unwrap();
    let proxy = Proxy::start(database.server.http_port());
    let tool = tool(database, &proxy).args(["--target-table", target]);
    let stall = Action::Stall(FOREVER);
    let second_segment = proxy.arm(Fault::once(SEGMENT, Place::RequestByte(0), stall).skip(1));
    let mut run = tool.spawn();
    wait_for(&second_segment, &mut run);
    run.terminate();
    run.wait().assert_code(143);
    let outcome = tool
        .without_arg("--segment-rows")
        .without_arg("50000")
        .args(["--segment-rows", "5000000", "--resume"])
        .run();
    outcome
        .assert_code(0)
        .assert_stderr_contains("--segment-rows 5,000,000 has no effect on a resume");
    outcome.assert_stderr_contains(&format!(
        "`events-backfill verify --partition {SAMPLE_PARTITION} --target-table {target}"
    ));
}

#[test]
fn a_run_is_followed_from_its_beginning_through_an_interruption_to_its_end() {
    let database = month();
    let proxy = Proxy::start(database.server.http_port());
    let tool = tool(database, &proxy);
    let state = tool.state_dir();

    // The first segment is done, and the second one is not read.
    let stall = Action::Stall(FOREVER);
    let second_segment = proxy.arm(Fault::once(SEGMENT, Place::RequestByte(0), stall).skip(1));
    let mut run = tool.spawn();
    wait_for(&second_segment, &mut run);
    let running = only_partition(&state);
    assert_eq!(running["partition"], SAMPLE_PARTITION);
    assert_eq!(running["state"], "running");
    assert_eq!(running["process"], run.id());
    assert_eq!(running["last_report"], Value::Null);
    let progress = &running["progress"];
    // The month, and a day before and after it.
    assert_eq!(progress["days_loaded"], 32);
    assert_eq!(progress["days_total"], 32);
    assert_eq!(progress["is_loaded"], true);
    assert_eq!(progress["segments_done"], 1);
    let segments = progress["segments_total"].as_u64().unwrap();
    assert!(segments >= 2, "{segments}");
    let observations = progress["observations_processed"].as_u64().unwrap();
    assert!(observations > 10_000 && observations < OBSERVATIONS);
    assert_eq!(progress["events_inserted"], observations);
    let without_trace = progress["observations_without_trace"].as_u64().unwrap();
    assert!(without_trace > 0 && without_trace < observations);
    assert!(running["store_bytes"].as_u64().unwrap() > 100_000);
    let outcome = status(&state, &[]);
    outcome.assert_code(0);
    let line_of_run = line(&outcome, SAMPLE_PARTITION);
    for words in ["running".to_owned(), format!("1/{segments} segments")] {
        assert!(line_of_run.contains(&words), "{words}: {line_of_run}");
    }
    let process = format!("process {} is working on it", run.id());
    assert!(outcome.stdout.contains(&process), "{}", outcome.stdout);

    run.terminate();
    let outcome = run.wait();
    outcome.assert_code(143);
    let not_counted =
        format!("1 of {segments}; those under way are not counted, and --resume reads them again");
    assert!(outcome.stdout.contains(&not_counted), "{}", outcome.stdout);
    let unfinished = only_partition(&state);
    assert_eq!(unfinished["state"], "interrupted");
    assert!(unfinished["next"].as_str().unwrap().contains("--resume"));
    assert_eq!(unfinished["process"], Value::Null);
    assert_eq!(unfinished["progress"]["segments_done"], 1);
    assert_eq!(unfinished["last_report"]["segments_done"], 1);
    let begun = &unfinished["progress"]["begun_at"];
    assert_eq!(begun, &progress["begun_at"]);
    assert!(begun.as_str().unwrap() <= unfinished["progress"]["saved_at"].as_str().unwrap());

    let tool = tool.arg("--resume");
    let outcome = tool.run();
    outcome.assert_code(0);
    // The same segments as before.
    assert!(
        !outcome.stderr.contains("has no effect"),
        "{}",
        outcome.stderr
    );
    let finished = only_partition(&state);
    let report = tool.report();
    assert_eq!(finished["state"], "finished");
    assert_eq!(finished["process"], Value::Null);
    assert_eq!(finished["store_bytes"], 0);
    assert_eq!(finished["next"], Value::Null);
    let last_report = &finished["last_report"];
    assert_eq!(last_report["events_inserted"], report["events_inserted"]);
    assert_eq!(&finished["progress"]["begun_at"], begun);
    for field in [
        "traces_loaded",
        "segments_done",
        "segments_total",
        "observations_processed",
        "events_inserted",
        "observations_without_trace",
    ] {
        assert_eq!(finished["progress"][field], report[field], "{field}");
    }
    assert_eq!(report["segments_done"], segments);
}

#[test]
fn loading_traces_is_told_by_its_days() {
    let database = small_month("loading");
    let proxy = Proxy::start(database.server.http_port());
    let stall = Action::Stall(FOREVER);
    // Small days are read several together, so the second statement is in the month's midst.
    let later_days = "ORDER BY t.project_id, toDate(t.timestamp)";
    let fault = proxy.arm(Fault::once(later_days, Place::RequestByte(0), stall).skip(2));
    let tool = tool(&database, &proxy);
    let mut run = tool.spawn();
    wait_for(&fault, &mut run);
    let partition = only_partition(&tool.state_dir());
    assert_eq!(partition["state"], "running");
    let days = partition["progress"]["days_loaded"].as_u64().unwrap();
    assert!(days > 0 && days < 32, "{days}");
    assert_eq!(partition["progress"]["days_total"], 32);
    assert_eq!(partition["progress"]["is_loaded"], false);
    let outcome = status(&tool.state_dir(), &[]);
    let words = format!("traces, {days}/32 days");
    assert!(line(&outcome, SAMPLE_PARTITION).contains(&words));
    assert_eq!(partition["progress"]["segments_done"], 0);
    assert_eq!(partition["progress"]["observations_processed"], 0);
    fault.lift();
    run.wait().assert_code(0);
    assert_eq!(only_partition(&tool.state_dir())["state"], "finished");
}

#[test]
fn observations_that_wait_for_traces_of_other_months_are_told() {
    let database = month();
    database
        .query("CREATE TABLE waiting AS events_full")
        .unwrap();
    let proxy = Proxy::start(database.server.http_port());
    let stall = Action::Stall(FOREVER);
    let question = "ORDER BY t.project_id, t.id, t.event_ts";
    let fault = proxy.arm(Fault::once(question, Place::RequestByte(0), stall));
    let tool = tool(database, &proxy).args(["--target-table", "waiting"]);
    let mut run = tool.spawn();
    wait_for(&fault, &mut run);
    let partition = only_partition(&tool.state_dir());
    let progress = &partition["progress"];
    assert_eq!(progress["segments_done"], progress["segments_total"]);
    let waiting = progress["observations_waiting"].as_u64().unwrap();
    assert!(waiting > 0 && waiting < OBSERVATIONS, "{waiting}");
    let next = partition["next"].as_str().unwrap();
    assert!(next.contains("wait for traces from other months"), "{next}");
    run.kill();
    run.wait();
    let partition = only_partition(&tool.state_dir());
    assert_eq!(partition["state"], "interrupted");
    assert_eq!(partition["progress"]["observations_waiting"], waiting);
}

#[test]
fn a_run_that_has_not_saved_anything_yet_is_seen_too() {
    let database = small_month("planning");
    let proxy = Proxy::start(database.server.http_port());
    let stall = Action::Stall(FOREVER);
    let plan = proxy.arm(Fault::once("mergeTreeIndex", Place::RequestByte(0), stall));
    let tool = tool(&database, &proxy);
    let mut run = tool.spawn();
    wait_for(&plan, &mut run);
    let partition = only_partition(&tool.state_dir());
    assert_eq!(partition["state"], "running");
    assert_eq!(partition["process"], run.id());
    assert_eq!(partition["progress"], Value::Null);
    let outcome = status(&tool.state_dir(), &[]);
    outcome.assert_code(0);
    assert!(line(&outcome, SAMPLE_PARTITION).contains("pending"));
    run.kill();
    run.wait();
    assert_eq!(only_partition(&tool.state_dir())["state"], "not_begun");
    let outcome = status(&tool.state_dir(), &[]);
    assert!(line(&outcome, SAMPLE_PARTITION).contains("not started"));
}

#[test]
fn a_run_that_failed_is_told_from_one_that_was_interrupted() {
    let database = small_month("failing");
    let proxy = Proxy::start(database.server.http_port());
    let answer = Action::Answer {
        status: "418 I'm a teapot",
        close: false,
    };
    let fault = proxy.arm(Fault::once(SEGMENT, Place::RequestByte(0), answer).always());
    let tool = tool(&database, &proxy).env("MAX_RETRIES", "0");
    tool.run().assert_code(1);
    let failed = only_partition(&tool.state_dir());
    assert_eq!(failed["state"], "failed");
    assert_eq!(failed["last_report"]["errors"], 1);
    assert!(failed["next"].as_str().unwrap().contains("--resume"));
    assert!(line(&status(&tool.state_dir(), &[]), SAMPLE_PARTITION).contains("failed"));

    fault.lift();
    tool.arg("--resume").run().assert_code(0);
}

#[test]
fn a_dry_run_is_told_from_a_run() {
    let database = small_month("dry");
    let proxy = Proxy::start(database.server.http_port());
    let stall = Action::Stall(FOREVER);
    let fault = proxy.arm(Fault::once(SEGMENT, Place::RequestByte(0), stall));
    let tool = tool(&database, &proxy).arg("--dry-run");
    let mut run = tool.spawn();
    wait_for(&fault, &mut run);
    let partition = only_partition(&tool.state_dir());
    assert_eq!(partition["partition"], SAMPLE_PARTITION);
    assert_eq!(partition["dry_run"], true);
    assert_eq!(partition["state"], "running");
    assert_eq!(partition["process"], run.id());
    run.kill();
    run.wait();
    let partition = only_partition(&tool.state_dir());
    assert_eq!(partition["state"], "left_over");
    assert!(partition["store_bytes"].as_u64().unwrap() > 0);
    let outcome = status(&tool.state_dir(), &[]);
    assert!(line(&outcome, SAMPLE_PARTITION).contains("dry run"));
    assert!(
        outcome.stdout.contains("run it again, or remove"),
        "{}",
        outcome.stdout
    );
}

#[test]
fn every_partition_has_a_line_the_oldest_first() {
    let database = small_month("several");
    // 202407 has no traces.
    let tool = Tool::new(&database).args(["--partition", "202407"]);
    tool.run().assert_code(0);
    let tool = tool.without_arg("202407").arg("202406");
    tool.run().assert_code(0);
    let outcome = status(&tool.state_dir(), &[]);
    outcome.assert_code(0);
    assert_eq!(outcome.stderr, "");
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", outcome.stdout);
    assert!(lines[0].starts_with("Month"), "{}", lines[0]);
    for (line, words) in [
        (lines[1], &["202406", "finished", "1/1", "6"][..]),
        (lines[2], &["202407", "finished", "1/1", "1"]),
    ] {
        for word in words {
            assert!(
                line.split_whitespace().any(|other| other == *word),
                "{word}: {line}"
            );
        }
        assert!(line.chars().count() <= 100, "{line}");
    }
}

/// Makes a checkpoint one of another format version, which is the number behind its first 8 bytes.
fn change_version(checkpoint: &Path) {
    let mut bytes = fs::read(checkpoint).unwrap();
    bytes[8] = 99;
    // The checksum is of everything but itself, which stands behind the length.
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..20]);
    hasher.update(&bytes[24..]);
    let checksum = hasher.finalize();
    bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    fs::write(checkpoint, bytes).unwrap();
}

#[test]
fn a_checkpoint_that_cannot_be_used_is_told_and_the_others_are_shown() {
    let database = small_month("unusable");
    let mut tool = Tool::new(&database).arg("--partition");
    for partition in ["202406", "202407"] {
        tool = tool.arg(partition);
        tool.run().assert_code(0);
        tool = tool.without_arg(partition);
    }
    let state = tool.state_dir();
    let checkpoint = state.join("202406").join("checkpoint");
    let intact = fs::read(&checkpoint).unwrap();

    fs::write(&checkpoint, &intact[..intact.len() / 2]).unwrap();
    let outcome = status(&state, &[]);
    outcome.assert_one_error(1, &["202406", "damaged", "--restart"]);
    assert!(line(&outcome, "202406").contains("damaged"));
    assert!(line(&outcome, "202407").contains("finished"));

    fs::write(&checkpoint, &intact).unwrap();
    change_version(&checkpoint);
    let outcome = status(&state, &["--json"]);
    outcome.assert_one_error(1, &["202406", "format 99", "--restart"]);
    let partitions = &parse(&outcome)["partitions"];
    assert_eq!(partitions[0]["state"], "unreadable");
    let error = partitions[0]["error"].as_str().unwrap();
    assert!(error.contains("format 99"), "{error}");
    assert_eq!(partitions[0]["progress"], Value::Null);
    assert_eq!(partitions[1]["state"], "finished");
    assert_eq!(partitions[1]["error"], Value::Null);

    // Both of them, in one sentence.
    fs::write(state.join("202407").join("checkpoint"), "nonsense").unwrap();
    status(&state, &[]).assert_one_error(1, &["202406", "202407"]);
}

#[test]
fn looking_changes_nothing() {
    let database = small_month("looking");
    let proxy = Proxy::start(database.server.http_port());
    let stall = Action::Stall(FOREVER);
    let fault = proxy.arm(Fault::once(SEGMENT, Place::RequestByte(0), stall));
    let tool = tool(&database, &proxy);
    let mut run = tool.spawn();
    wait_for(&fault, &mut run);
    // The run waits, so nothing else changes anything either.
    let before = snapshot(&tool.state_dir());
    status(&tool.state_dir(), &[]).assert_code(0);
    status(&tool.state_dir(), &["--json"]).assert_code(0);
    assert!(before == snapshot(&tool.state_dir()));
    fault.lift();
    run.wait().assert_code(0);
    let before = snapshot(&tool.state_dir());
    status(&tool.state_dir(), &[]).assert_code(0);
    assert!(before == snapshot(&tool.state_dir()));
}

#[test]
fn no_run_is_kept_from_starting_or_ending_by_somebody_who_looks() {
    let database = small_month("watched");
    let tool = Tool::new(&database).args(["--partition", SAMPLE_PARTITION, "--restart"]);
    tool.run().assert_code(0);
    let state = tool.state_dir();
    let is_over = Arc::new(AtomicBool::new(false));
    let watchers: Vec<_> = (0..2)
        .map(|_| {
            let (state, is_over) = (state.clone(), Arc::clone(&is_over));
            thread::spawn(move || {
                let mut looked = 0;
                while !is_over.load(Ordering::SeqCst) {
                    // Between two runs the checkpoint is removed or made anew, but never half.
                    status(&state, &[]).assert_code(0);
                    looked += 1;
                }
                looked
            })
        })
        .collect();
    for _ in 0..10 {
        tool.run().assert_code(0);
    }
    is_over.store(true, Ordering::SeqCst);
    let looked: u32 = watchers.into_iter().map(|w| w.join().unwrap()).sum();
    println!("looked {looked} times");
    assert!(looked >= 10, "{looked}");
}
