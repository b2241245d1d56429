//! Signals, terminals and limits of the operating system.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{ask_number, execute, slow_down, speed_up, wait_for_event};
use crate::support::{Database, SAMPLE_PARTITION, Server, Tool};
use nix::libc;

/// A month whose events are slow to be written.
fn month(name: &str) -> Database<'static> {
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    let source = MONTH.get_or_init(|| Server::shared().sample_month("signals", 3_000));
    let database = source.server.database(name);
    database.load_schema();
    for table in ["traces", "observations"] {
        execute(&database, &format!("DROP TABLE {table}"));
        let original = format!("`{}`.{table}", source.name);
        execute(
            &database,
            &format!("CREATE TABLE {table} CLONE AS {original}"),
        );
    }
    slow_down(&database, 1.0);
    database
}

fn tool(database: &Database) -> Tool {
    Tool::new(database)
        .args(["--partition", SAMPLE_PARTITION])
        .args(["--batch-size", "500", "--concurrency", "1"])
}

#[track_caller]
fn assert_goes_on(database: &Database, tool: Tool) {
    speed_up(database);
    tool.arg("--resume").run().assert_code(0);
    let wanted =
        "SELECT uniqExact(project_id, trace_id, id, toDate(start_time)) FROM observations FINAL";
    let events = ask_number(database, "SELECT count() FROM events_full");
    assert!(events > 2_800 && events <= ask_number(database, wanted));
    let twice = "SELECT count() - uniqExact(project_id, trace_id, span_id) FROM events_full";
    assert_eq!(ask_number(database, twice), 0);
}

#[test]
fn whatever_signal_ends_a_run_it_says_so_at_once_and_keeps_what_is_done() {
    for (signal, code, words) in [
        (libc::SIGINT, 130, "interrupted (SIGINT)"),
        (libc::SIGTERM, 143, "asked to stop (SIGTERM)"),
        (libc::SIGHUP, 129, "the terminal was closed (SIGHUP)"),
    ] {
        let database = month(&format!("signal_{signal}"));
        // Whoever runs the tests may have them ignore SIGHUP.
        let tool = tool(&database).started_by(["env", "--default-signal=HUP"]);
        let mut running = tool.spawn();
        wait_for_event(&mut running, &database);
        running.signal(signal);
        let outcome = running.wait();
        outcome.assert_code(code).assert_stderr_contains(words);
        outcome.assert_stderr_contains("--resume");
        let at_once = outcome.stderr.find(words).unwrap();
        let at_end = outcome.stderr.rfind("error: ").unwrap();
        assert!(at_once < at_end, "{}", outcome.stderr);
        assert_goes_on(&database, tool);
    }
}

#[test]
fn a_second_signal_ends_a_run_at_once() {
    let database = month("signal_twice");
    let tool = tool(&database);
    let mut running = tool.spawn();
    wait_for_event(&mut running, &database);
    running.interrupt();
    thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    running.terminate();
    let outcome = running.wait();
    outcome.assert_code(143);
    assert!(
        started.elapsed() < Duration::from_millis(700),
        "{outcome:?}"
    );
    assert_goes_on(&database, tool);
}

#[test]
fn a_run_that_nohup_began_outlives_its_terminal() {
    let database = month("nohup");
    speed_up(&database);
    let small = ["--batch-size", "50", "--concurrency", "1"];
    let tool = Tool::new(&database)
        .args(["--partition", SAMPLE_PARTITION])
        .args(small)
        .started_by(["nohup"]);
    let mut running = tool.spawn();
    wait_for_event(&mut running, &database);
    running.signal(libc::SIGHUP);
    running.wait().assert_code(0);
}

#[test]
fn a_low_limit_of_open_files_is_raised_or_enough() {
    // A soft limit can be raised, and a hard one cannot.
    for limit in [
        "ulimit -S -n 20; exec \"$0\" \"$@\"",
        "ulimit -n 128; exec \"$0\" \"$@\"",
    ] {
        let database = month("open_files");
        speed_up(&database);
        let tool = Tool::new(&database)
            .args(["--partition", SAMPLE_PARTITION])
            .with_defaults()
            .started_by(["sh", "-c", limit]);
        tool.run().assert_code(0);
    }
}

#[test]
fn too_few_open_files_are_named() {
    let database = month("few_files");
    let tool = tool(&database).started_by(["sh", "-c", "ulimit -n 60; exec \"$0\" \"$@\""]);
    tool.run()
        .assert_one_error(2, &["only 60 files", "ulimit -n 1024"]);
}
