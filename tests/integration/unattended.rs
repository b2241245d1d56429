//! `--resume-or-start`: one command line for the first start and for every restart, as whatever
//! starts a container or a service again by itself gives it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{
    Specification, ask_number, assert_complete, execute, keep_versions_apart, slow_down, speed_up,
    wait_for_event,
};
use crate::support::{Database, Options, SAMPLE_PARTITION, Server, Tool};

/// Observations of a month.
const OBSERVATIONS: u64 = 3_000;

/// Sources of a month with what its events must be in the table `expected`, and a target that is slow.
fn month(name: &str) -> Database<'static> {
    let database = Server::shared().sample_month(name, OBSERVATIONS);
    prepare(&database);
    database
}

fn prepare(database: &Database) {
    let specification = Specification::current();
    specification.fill(database, SAMPLE_PARTITION, "events_full", "expected");
    keep_versions_apart(database, &["events_full"]);
    slow_down(database, 1.0);
}

/// The command line that is always the same.
fn tool(database: &Database) -> Tool {
    Tool::new(database)
        .args(["--partition", SAMPLE_PARTITION, "--resume-or-start"])
        .args(["--batch-size", "500", "--concurrency", "1"])
}

#[test]
fn one_command_line_starts_goes_on_and_says_when_it_is_finished() {
    let database = month("unattended");
    let tool = tool(&database);
    let mut run = tool.spawn();
    wait_for_event(&mut run, &database);
    run.terminate();
    let outcome = run.wait();
    // The advice is one that this command line can follow.
    outcome.assert_one_error(143, &["the same command line continues it"]);
    assert!(!outcome.stderr.contains("--resume"), "{}", outcome.stderr);

    speed_up(&database);
    let outcome = tool.run();
    outcome
        .assert_code(0)
        .assert_stderr_contains("resuming with");
    assert_eq!(tool.report()["resumed"], true);
    assert_complete(&database, "events_full");

    let outcome = tool.run();
    outcome
        .assert_code(0)
        .assert_stderr_contains("was finished on");
    assert_complete(&database, "events_full");
}

#[test]
fn the_variable_does_the_same_and_a_flag_counts_before_it() {
    let database = month("unattended_variable");
    speed_up(&database);
    let tool = tool(&database)
        .without_arg("--resume-or-start")
        .env("RESUME_OR_START", "true");
    let tool = tool.arg("--resume");
    tool.run().assert_one_error(2, &["nothing to resume"]);
    let tool = tool.without_arg("--resume");
    tool.run().assert_code(0);
    tool.run()
        .assert_code(0)
        .assert_stderr_contains("was finished on");
    assert_complete(&database, "events_full");
}

#[test]
fn it_goes_with_neither_resume_nor_restart() {
    for other in ["--resume", "--restart"] {
        let tool = Tool::unconfigured().args(["--all-partitions", "--resume-or-start", other]);
        let outcome = tool.run();
        outcome.assert_code(2).assert_stderr_contains(other);
        outcome.assert_stderr_contains("--resume-or-start");
    }
}

#[test]
fn of_all_months_the_finished_are_skipped_the_begun_continued_and_the_others_begun() {
    let database = Server::shared().database("unattended_months");
    database.load_schema();
    for first_day in ["2024-05-01", "2024-06-01", "2024-07-01"] {
        database.load_month(first_day, OBSERVATIONS);
    }
    let expected = "CREATE TABLE expected AS events_full ENGINE = Memory";
    execute(&database, expected);
    for month in ["202405", "202406", "202407"] {
        Specification::current().add(&database, month, "expected");
    }
    keep_versions_apart(&database, &["events_full"]);
    slow_down(&database, 0.5);
    let tool = Tool::new(&database)
        .args(["--all-partitions", "--resume-or-start"])
        .args(["--batch-size", "500", "--concurrency", "1"]);
    let mut run = tool.spawn();
    let started = Instant::now();
    let of_june = "SELECT count() FROM events_full WHERE _partition_id = '202406'";
    while ask_number(&database, of_june) == 0 {
        assert!(run.is_running() && started.elapsed() < Duration::from_secs(120));
        thread::sleep(Duration::from_millis(10));
    }
    run.kill();
    run.wait();
    speed_up(&database);
    tool.run().assert_code(0);
    let states = |tool: &Tool| {
        let report = tool.report();
        let partitions = report["partitions"].as_array().unwrap().iter();
        partitions
            .map(|partition| partition["state"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(states(&tool), ["already_finished", "done", "done"]);
    assert_eq!(tool.report()["partitions"][1]["resumed"], true);
    assert_complete(&database, "events_full");
    tool.run().assert_code(0);
    assert_eq!(states(&tool), ["already_finished"; 3]);
}

#[test]
fn what_was_made_for_something_else_or_is_damaged_is_refused_and_not_begun_anew() {
    let database = month("unattended_refused");
    let tool = tool(&database);
    let mut run = tool.spawn();
    wait_for_event(&mut run, &database);
    run.kill();
    run.wait();
    speed_up(&database);
    let checkpoint = tool.state_dir().join(SAMPLE_PARTITION).join("checkpoint");
    let before = fs::read(&checkpoint).unwrap();

    let tool = tool.arg("--no-trace-metadata");
    let words = [
        "with different settings",
        "--no-trace-metadata",
        "undo the change",
    ];
    tool.run().assert_one_error(2, &words);
    let tool = tool.without_arg("--no-trace-metadata");
    assert_eq!(fs::read(&checkpoint).unwrap(), before);

    fs::write(&checkpoint, &before[..before.len() - 1]).unwrap();
    let words = ["checkpoint", "damaged", "--restart"];
    tool.run().assert_one_error(2, &words);
    fs::write(&checkpoint, &before).unwrap();
    tool.run().assert_code(0);
    assert_complete(&database, "events_full");
}

#[test]
fn it_waits_for_the_process_before_to_end_and_takes_over_from_it() {
    let database = month("unattended_ending");
    let tool = tool(&database);
    let mut first = tool.spawn();
    wait_for_event(&mut first, &database);
    let second = tool.spawn();
    thread::sleep(Duration::from_secs(3));
    speed_up(&database);
    first.terminate();
    first.wait().assert_code(143);
    let outcome = second.wait();
    outcome
        .assert_code(0)
        .assert_stderr_contains("in use by process")
        .assert_stderr_contains("waiting up to 60 s");
    assert_complete(&database, "events_full");
}

#[test]
fn it_ends_at_once_when_told_to_while_it_waits_for_the_process_before() {
    let database = month("unattended_told");
    let tool = tool(&database);
    let mut first = tool.spawn();
    wait_for_event(&mut first, &database);
    let mut second = tool.spawn();
    thread::sleep(Duration::from_secs(3));
    assert!(second.is_running());
    let told = Instant::now();
    second.terminate();
    second.wait().assert_code(143);
    assert!(told.elapsed() < Duration::from_secs(2));
}

#[test]
fn it_waits_for_a_server_that_is_not_there_yet() {
    let server = Server::start(Options::default());
    let database = server.sample_month("unattended_early", OBSERVATIONS);
    keep_versions_apart(&database, &["events_full"]);
    server.kill();
    let run = tool(&database).spawn();
    thread::sleep(Duration::from_secs(3));
    server.restart();
    let outcome = run.wait();
    outcome
        .assert_code(0)
        .assert_stderr_contains("trying again in");
    let specification = Specification::current();
    specification.fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    assert_complete(&database, "events_full");
}

#[test]
fn a_server_that_does_not_come_is_no_error_of_the_configuration_and_a_wrong_password_is() {
    let database = month("unattended_away");
    let away = tool(&database)
        .env("CLICKHOUSE_URL", "http://127.0.0.1:1")
        .env("MAX_RETRIES", "1");
    // Whatever watches the exit code starts it again after 1, and not after 2.
    away.run().assert_one_error(1, &["cannot be reached"]);
    let all = Tool::new(&database)
        .args(["--all-partitions", "--resume-or-start"])
        .env("CLICKHOUSE_URL", "http://127.0.0.1:1")
        .env("MAX_RETRIES", "1");
    all.run().assert_one_error(1, &["cannot be reached"]);
    let refused = tool(&database).env("CLICKHOUSE_USER", "nobody");
    refused.run().assert_one_error(2, &["CLICKHOUSE_PASSWORD"]);
}
