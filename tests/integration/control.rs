//! How fast a run goes can be changed while it does, by its owner.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::differential::{Specification, ask_number, assert_complete, execute};
use crate::support::{Database, Outcome, Running, SAMPLE_PARTITION, Server, Tool};

/// A month of so many observations, and its events as they should be.
fn month(name: &str, observations: u64) -> Database<'static> {
    let database = Server::shared().sample_month(name, observations);
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    // Small segments: one that is under way is finished.
    execute(&database, "OPTIMIZE TABLE observations FINAL");
    database
}

/// A run that takes some seconds, in many small inserts.
fn slow_run(database: &Database) -> Tool {
    Tool::new(database)
        .args([
            "--partition",
            SAMPLE_PARTITION,
            "--segment-rows",
            "1000",
            "--batch-size",
            "500",
        ])
        .args(["--concurrency", "2", "--max-rows-per-second", "2000"])
}

/// What `events-backfill` says that is given these arguments and the state directory of a run.
fn tell(run: &Tool, arguments: &[&str]) -> Outcome {
    tell_in(&run.state_dir(), arguments)
}

fn tell_in(state_dir: &Path, arguments: &[&str]) -> Outcome {
    Tool::unconfigured()
        // It has no such flags, and this keeps `Tool` from giving them.
        .env("REPORT", "none")
        .with_defaults()
        .args(arguments.iter().copied())
        .arg("--state-dir")
        .arg(state_dir)
        .run()
}

fn rows(database: &Database) -> u64 {
    ask_number(database, "SELECT count() FROM events_full")
}

#[track_caller]
fn wait_for_rows(running: &mut Running, database: &Database, least: u64) {
    let started = Instant::now();
    while rows(database) < least {
        assert!(running.is_running(), "it ended before {least} rows");
        assert!(started.elapsed() < Duration::from_secs(60), "{least} rows");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until no rows come any more, and gives how many there are.
fn rows_at_rest(database: &Database) -> u64 {
    let mut before = rows(database);
    loop {
        thread::sleep(Duration::from_secs(3));
        let now = rows(database);
        if now == before {
            return now;
        }
        before = now;
    }
}

/// The run, which has begun to write and is paused.
fn paused(run: &Tool, database: &Database) -> Running {
    let mut running = run.spawn();
    wait_for_rows(&mut running, database, 1);
    tell(run, &["pause"]).assert_code(0);
    rows_at_rest(database);
    running
}

fn speed(run: &Tool) -> Value {
    let outcome = tell(run, &["status", "--json"]);
    outcome.assert_code(0);
    let status: Value = serde_json::from_str(&outcome.stdout).unwrap();
    status["partitions"][0]["speed"].clone()
}

#[test]
fn a_run_is_paused_and_goes_on_and_goes_faster_while_it_is_at_work() {
    let database = month("paused", 30_000);
    let run = slow_run(&database);
    let mut running = run.spawn();
    wait_for_rows(&mut running, &database, 1);
    let answer = tell(&run, &["pause"]);
    answer.assert_code(0);
    assert!(answer.stdout.starts_with("202406: paused; "), "{answer:?}");
    let paused_at = rows_at_rest(&database);
    assert!(paused_at < 29_000);
    assert!(running.is_running());
    assert_eq!(speed(&run)["is_paused"], true);

    let answer = tell(&run, &["set", "concurrency=1", "max-rows-per-second=off"]);
    answer.assert_code(0);
    assert!(answer.stdout.contains("1 segment at once"), "{answer:?}");
    assert_eq!(rows_at_rest(&database), paused_at);
    let state = speed(&run);
    assert_eq!(
        (&state["concurrency"], &state["rows_per_second"]),
        (&1.into(), &Value::Null)
    );

    tell(&run, &["continue"]).assert_code(0);
    let outcome = running.wait();
    outcome
        .assert_code(0)
        .assert_stderr_contains("changed by command: paused; ");
    let paused = run.report()["throttled_seconds"]["paused"].as_f64();
    assert!(paused > Some(5.0));
    // It stood still for that time but for the segments that were under way then, which wrote a
    // thousand rows each at 2,000 a second.
    let history = run.state_dir().join(SAMPLE_PARTITION).join("history.json");
    let history: Value = serde_json::from_slice(&fs::read(history).unwrap()).unwrap();
    let points = history["stretches"][0]["points"].as_array().unwrap();
    let still = points.last().unwrap()["still_seconds"].as_f64();
    assert!(still > Some(3.0) && still < paused.map(|paused| paused - 0.1));
    assert_complete(&database, "events_full");
    tell(&run, &["continue"]).assert_one_error(2, &["no run is active", "--state-dir"]);
}

#[test]
fn a_run_that_is_paused_can_be_killed_and_resumed() {
    let database = month("paused_and_killed", 20_000);
    let run = slow_run(&database);
    let mut running = paused(&run, &database);
    running.kill();
    running.wait();
    tell(&run, &["pause"]).assert_one_error(2, &["no run is active"]);
    run.arg("--resume").run().assert_code(0);
    assert_complete(&database, "events_full");
}

#[test]
fn a_run_that_is_told_things_and_killed_at_random_writes_each_event_once() {
    let database = month("told_and_killed", 30_000);
    let run = slow_run(&database);
    let state_dir = run.state_dir();
    let checkpoint = state_dir.join(SAMPLE_PARTITION).join("checkpoint");
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = fastrand::Rng::new();
            let changes: [&[&str]; 4] = [
                &["pause"],
                &["set", "concurrency=1"],
                &["set", "concurrency=2", "max-rows-per-second=4000"],
                &["set", "max-rows-per-second=off"],
            ];
            while !is_done.load(Ordering::Relaxed) {
                // It may not be there at the moment.
                tell_in(&state_dir, changes[random.usize(..changes.len())]);
                thread::sleep(Duration::from_millis(random.u64(10..300)));
                tell_in(&state_dir, &["continue"]);
            }
        });
        let run = run.run_with_kills(5, &checkpoint);
        is_done.store(true, Ordering::Relaxed);
        assert_eq!(run.report()["errors"], 0);
    });
    assert_complete(&database, "events_full");
    let copies = "SELECT count() - uniqExact(project_id, trace_id, span_id) FROM events_full";
    assert_eq!(ask_number(&database, copies), 0);
}

#[test]
fn a_run_that_is_paused_ends_when_it_is_told_to() {
    let database = month("paused_and_told", 20_000);
    let run = slow_run(&database);
    let mut running = paused(&run, &database);
    let told = Instant::now();
    running.terminate();
    let outcome = running.wait();
    assert_eq!(outcome.code, Some(143), "{outcome:?}");
    assert!(told.elapsed() < Duration::from_secs(10), "{outcome:?}");
}

#[test]
fn outside_of_its_window_a_run_waits() {
    let database = month("window", 2_000);
    // Twelve hours from now, for an hour, in the zone of the clock of Greenwich.
    let hour = ask_number(&database, "SELECT (toHour(now('UTC')) + 12) % 24");
    let closed = format!("{hour:02}:00-{:02}:00 UTC", (hour + 1) % 24);
    let open = format!("{:02}:00-{hour:02}:00 UTC", (hour + 1) % 24);
    let run = Tool::new(&database).args(["--partition", SAMPLE_PARTITION, "--window"]);
    let waits = run.arg(&closed);
    let mut running = waits.spawn();
    let started = Instant::now();
    while !waits
        .state_dir()
        .join(SAMPLE_PARTITION)
        .join("control.sock")
        .exists()
    {
        assert!(running.is_running() && started.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_secs(2));
    assert_eq!(speed(&waits)["is_outside_window"], true);
    assert_eq!(rows(&database), 0);
    let told = Instant::now();
    running.interrupt();
    let outcome = running.wait();
    assert_eq!(outcome.code, Some(130), "{outcome:?}");
    assert!(told.elapsed() < Duration::from_secs(10), "{outcome:?}");
    outcome.assert_stderr_contains(&format!("the window {closed} is closed"));
    waits
        .without_arg(&closed)
        .arg(&open)
        .arg("--resume")
        .run()
        .assert_code(0);
    assert_complete(&database, "events_full");
}

#[test]
fn only_its_owner_can_tell_a_run_anything() {
    let database = month("socket", 20_000);
    // A path that is longer than the address of a socket can be.
    let directory = tempfile::tempdir().unwrap();
    let state_dir = directory.path().join("long".repeat(30));
    let run = slow_run(&database).arg("--state-dir").arg(&state_dir);
    let mut running = run.spawn();
    wait_for_rows(&mut running, &database, 1);
    let socket = state_dir.join(SAMPLE_PARTITION).join("control.sock");
    let mode = socket.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    tell_in(&state_dir, &["set", "max-rows-per-second=off"]).assert_code(0);
    running.wait().assert_code(0);
    assert!(!socket.exists());
    assert_complete(&database, "events_full");
}

#[test]
fn what_cannot_be_set_is_told() {
    let database = month("refused", 20_000);
    let run = slow_run(&database);
    let mut running = run.spawn();
    wait_for_rows(&mut running, &database, 1);
    for (change, code, word) in [
        ("concurrency=3", 1, "memory allows 1 to"),
        ("max-rows-per-second=7", 2, "max-rows-per-second"),
        ("speed=high", 2, "'speed' cannot be set"),
        ("pause", 2, "NAME=VALUE"),
    ] {
        tell(&run, &["set", change]).assert_one_error(code, &[word]);
    }
    tell(&run, &["set", "max-rows-per-second=off"]).assert_code(0);
    running.wait().assert_code(0);
}
