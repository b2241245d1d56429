//! Eight processes share out a month by its days, are killed again and again, and are started again by
//! somebody who knows nothing of the others.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{
    ask_number, assert_equal, execute, slow_down, speed_up, wait_for_event,
};
use crate::support::{Database, SAMPLE_PARTITION, Server, Tool, moved_month};

const OBSERVATIONS: u64 = 100_000;
const SHARDS: usize = 8;
/// How often each process is killed.
const KILLS: u32 = 3;
/// What each may take. Eight of them and the server are on the machine of the tests.
const MEMORY_LIMIT: u64 = 160 << 20;

fn tool(database: &Database) -> Tool {
    Tool::new(database)
        .with_defaults()
        .args(["--partition", SAMPLE_PARTITION, "--resume-or-start"])
}

/// The same as one of the pods of a Kubernetes Indexed Job.
fn pod(database: &Database, index: usize) -> Tool {
    tool(database)
        .args([
            "--segment-rows",
            "5000",
            "--batch-size",
            "2000",
            "--concurrency",
            "2",
        ])
        .env("MEMORY_LIMIT", MEMORY_LIMIT.to_string())
        .env("JOB_COMPLETION_INDEX", index.to_string())
        .env("JOB_COMPLETIONS", SHARDS.to_string())
}

/// Starts it again and again, as Kubernetes does, and kills it at random moments. Gives its report.
fn run_with_kills(tool: &Tool, mut random: fastrand::Rng) -> serde_json::Value {
    for _ in 0..KILLS {
        let mut run = tool.spawn();
        thread::sleep(Duration::from_millis(random.u64(50..4_000)));
        if run.is_running() {
            run.kill();
        }
        run.wait();
    }
    let outcome = tool.run();
    outcome.assert_code(0);
    tool.report()
}

#[test]
fn eight_processes_that_are_killed_write_each_event_of_a_month_once() {
    let database = moved_month("eight_shards", OBSERVATIONS);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let pods: Vec<Tool> = (0..SHARDS).map(|index| pod(&database, index)).collect();
    let reports: Vec<serde_json::Value> = thread::scope(|scope| {
        let runs: Vec<_> = pods
            .iter()
            .map(|tool| {
                let random = random.fork();
                scope.spawn(move || run_with_kills(tool, random))
            })
            .collect();
        // While they are at it parts are merged: what a shard has does not depend on them.
        execute(&database, "SYSTEM START MERGES observations");
        execute(&database, "OPTIMIZE TABLE observations FINAL");
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    // Without FINAL.
    assert_equal(&database, "expected", "events_full");
    let events = ask_number(&database, "SELECT count() FROM events_full");
    assert_eq!(
        ask_number(&database, "SELECT count() FROM events_core"),
        events
    );
    for report in &reports {
        let peak = report["peak_rss_bytes"].as_u64().unwrap();
        assert!(
            peak <= MEMORY_LIMIT,
            "{} of {MEMORY_LIMIT} bytes: {}",
            peak,
            report["shard"]
        );
    }
    let verify = Tool::new(&database).with_defaults().arg("verify");
    let verify = verify
        .args(["--partition", SAMPLE_PARTITION])
        .env("STATE_DIR", "state");
    verify.run().assert_code(0);
}

#[test]
fn who_would_write_the_days_of_a_shard_that_is_at_work_is_turned_away() {
    let database = Server::shared().sample_month("shards_in_the_way", 20_000);
    // Each block of an insert waits: a shard inserts its observations for half a minute, then
    // its root spans.
    slow_down(&database, 3.0);
    let tool = |extra: &[&str]| {
        let tool = Tool::new(&database).with_defaults();
        let tool = tool.args(["--partition", SAMPLE_PARTITION, "--batch-size", "1000"]);
        tool.args(extra.iter().copied())
    };
    let at_work = tool(&["--shard", "1/2"]);
    let mut run = at_work.spawn();
    wait_for_event(&mut run, &database);
    // In the same state directory nothing has to be inserted to be seen.
    let same = tool(&["--shard", "1/4"]).env("STATE_DIR", at_work.state_dir());
    same.run()
        .assert_one_error(2, &["202406 1/4 overlaps 202406 1/2", "which process"]);
    let beside = tool(&["--shard", "2/2"]);
    let others = [tool(&["--shard", "1/3"]), tool(&[])];
    let mut second = beside.spawn();
    let turned_away: Vec<_> = others.iter().map(Tool::spawn).collect();
    wait_for_rows_after(&database, "2024-06-20");
    assert!(second.is_running() && run.is_running());
    for other in turned_away {
        other
            .wait()
            .assert_one_error(1, &["another events-backfill", "202406"]);
    }
    speed_up(&database);
    second.wait().assert_code(0);
    run.wait().assert_code(0);
}

fn wait_for_rows_after(database: &Database, day: &str) {
    let started = Instant::now();
    let rows = format!("SELECT count() FROM events_full WHERE start_time > '{day}'");
    while ask_number(database, &rows) == 0 {
        assert!(started.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(20));
    }
}
