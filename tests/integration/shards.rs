//! Processes that share out a month by its days write together what one process writes, and know
//! nothing of each other.

use std::path::Path;

use serde_json::Value;

use crate::support::differential::{ask, ask_number, assert_equal, execute};
use crate::support::{
    Database, SAMPLE_PARTITION, Server, Tool, moved_month, small_month, untouched,
};

const OBSERVATIONS: u64 = 20_000;

/// A shard, with its state in a directory that is the test's own.
fn shard(database: &Database, shard: &str, state_dir: &Path) -> Tool {
    Tool::new(database)
        .with_defaults()
        .args(["--partition", SAMPLE_PARTITION, "--shard", shard])
        .env("STATE_DIR", state_dir)
}

#[test]
fn shards_write_together_what_one_process_writes() {
    let database = moved_month("shards_together", OBSERVATIONS);
    let moved = "SELECT count() FROM (SELECT id FROM observations WHERE _partition_id = '202406' \
                 GROUP BY project_id, trace_id, id HAVING uniq(toDate(start_time)) > 1)";
    let moved = ask_number(&database, moved);
    assert!(
        moved > 500,
        "{moved} observations with versions on several days"
    );
    for of in [3, 28] {
        let target = format!("events_of_{of}");
        execute(&database, &format!("CREATE TABLE {target} AS events_full"));
        let state = tempfile::tempdir().unwrap();
        let mut rows = 0;
        // In no order: none waits for another.
        let mut numbers: Vec<u32> = (1..=of).collect();
        fastrand::shuffle(&mut numbers);
        for number in numbers {
            let tool = shard(&database, &format!("{number}/{of}"), state.path());
            let tool = tool.args(["--target-table", &target, "--segment-rows", "2000"]);
            tool.run().assert_code(0);
            let report = tool.report();
            assert_eq!(report["shard"], format!("{number}/{of}"));
            let inserted = |field: &str| report[field].as_u64().unwrap();
            rows += inserted("events_inserted") + inserted("root_spans_inserted");
        }
        // Without FINAL: none is there twice.
        assert_equal(&database, "expected", &target);
        assert_eq!(rows, ask_number(&database, "SELECT count() FROM expected"));
    }
}

#[test]
fn a_shard_loads_the_traces_of_its_own_days_and_the_days_beside_them() {
    let database = untouched_month();
    let state = tempfile::tempdir().unwrap();
    let whole = Tool::new(database).args(["--partition", SAMPLE_PARTITION, "--dry-run"]);
    whole.run().assert_code(0);
    let tool = shard(database, "3/10", state.path()).arg("--dry-run");
    let outcome = tool.run();
    outcome
        .assert_code(0)
        .assert_stderr_contains("shard 3/10 (2024-06-07 to 2024-06-09)");
    let loaded = ask_number(
        database,
        "SELECT uniq(project_id, id) FROM traces \
         WHERE toDate(timestamp) BETWEEN '2024-06-06' AND '2024-06-10'",
    );
    let at_most = tool.report()["traces_loaded"].as_u64().unwrap();
    assert!(at_most <= loaded && at_most > 0, "{at_most} of {loaded}");
    let all = whole.report()["traces_loaded"].as_u64().unwrap();
    assert!(at_most < all / 4, "{at_most} of {all}");
}

/// A sample month that nobody changes.
fn untouched_month() -> &'static Database<'static> {
    static MONTH: std::sync::OnceLock<Database<'static>> = std::sync::OnceLock::new();
    MONTH.get_or_init(|| Server::shared().sample_month("shards_untouched", OBSERVATIONS))
}

#[test]
fn the_shards_of_a_month_are_seen_as_one_run_wherever_their_state_lies() {
    let database = small_month("shards_status");
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let places = [here.path(), there.path()];
    let status = |extra: &[&str]| {
        let mut status = Tool::unconfigured().args(["status"]);
        for place in places {
            status = status.arg("--state-dir").arg(place);
        }
        let outcome = status
            .args(extra.iter().copied())
            .env("REPORT", "none")
            .run();
        outcome.assert_code(0);
        outcome.stdout
    };
    shard(&database, "1/3", here.path()).run().assert_code(0);
    let words = status(&[]);
    assert!(words.contains("202406 1/3"), "{words}");
    assert!(words.contains("1 of 3 shards finished"), "{words}");
    assert!(words.contains("state elsewhere: 2/3, 3/3"), "{words}");
    for (number, place) in [("2/3", there.path()), ("3/3", here.path())] {
        shard(&database, number, place).run().assert_code(0);
    }
    let words = status(&[]);
    assert!(
        words.contains("3 of 3 shards finished, 9 events"),
        "{words}"
    );
    assert!(words.contains("verify --partition 202406"), "{words}");
    let json: Value = serde_json::from_str(&status(&["--json"])).unwrap();
    let month = &json["sharded_months"][0];
    assert_eq!(month["shards"], 3);
    assert_eq!(month["finished"], serde_json::json!(["1/3", "2/3", "3/3"]));
    assert_eq!(month["events_inserted"], 9);
    let shards: Vec<&str> = json["partitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|partition| partition["shard"].as_str().unwrap())
        .collect();
    assert_eq!(shards, ["1/3", "2/3", "3/3"]);

    // What verify says of the month is kept beside each shard's state, and the page has it.
    let verify = Tool::new(&database).with_defaults().arg("verify");
    let verify = verify.args(["--partition", SAMPLE_PARTITION]);
    // Which shard a process is says nothing of what is verified.
    let verify = verify.env("SHARD", "1/3").env("STATE_DIR", here.path());
    verify.run().assert_code(0).assert_stderr_contains("events");
    let page = here.path().join("../page-of-shards.html");
    let report = Tool::unconfigured().args(["report", "--html"]).arg(&page);
    report
        .arg("--state-dir")
        .arg(here.path())
        .env("REPORT", "none")
        .run()
        .assert_code(0);
    let html = std::fs::read_to_string(&page).unwrap();
    for words in ["202406 1/3", "202406 3/3"] {
        assert!(html.contains(words), "{words}");
    }
    assert!(here.path().join("202406-1of3/verify.json").exists());
    assert!(here.path().join("202406-3of3/verify.json").exists());
}

#[test]
fn what_shards_have_written_a_whole_run_finds_there() {
    let database = small_month("shards_then_all");
    let state = tempfile::tempdir().unwrap();
    shard(&database, "1/2", state.path()).run().assert_code(0);
    let written = ask_number(&database, "SELECT count() FROM events_full");
    let all = Tool::new(&database).with_defaults();
    let all = all
        .args(["--partition", SAMPLE_PARTITION])
        .env("STATE_DIR", state.path());
    all.run().assert_code(0);
    assert_eq!(all.report()["already_there"], written);
    assert_eq!(
        ask(
            &database,
            "SELECT count(), count(DISTINCT span_id) FROM events_full"
        ),
        "9\t9"
    );
    // And a shard what a whole run has.
    let second = shard(&database, "2/2", state.path());
    second.run().assert_code(0);
    assert_eq!(ask_number(&database, "SELECT count() FROM events_full"), 9);
}

#[test]
fn a_pod_of_an_indexed_job_needs_no_other_word() {
    let database = small_month("shards_pods");
    let state = tempfile::tempdir().unwrap();
    for index in ["1", "0"] {
        let tool = Tool::new(&database)
            .with_defaults()
            .args(["--partition", SAMPLE_PARTITION, "--resume-or-start"])
            .env("STATE_DIR", state.path())
            .env("JOB_COMPLETION_INDEX", index)
            .env("JOB_COMPLETIONS", "2");
        tool.run().assert_code(0);
        assert!(
            state
                .path()
                .join(format!("202406-{}of2", if index == "0" { 1 } else { 2 }))
                .exists()
        );
    }
    assert_eq!(
        ask(
            &database,
            "SELECT count(), count(DISTINCT span_id) FROM events_full"
        ),
        "9\t9"
    );
}

#[test]
fn what_cannot_be_a_shard_is_refused_before_anything_is_asked() {
    let state = tempfile::tempdir().unwrap();
    let tool = |text: &str| shard(untouched(), text, state.path());
    tool("9/8")
        .run()
        .assert_one_error(2, &["--shard", "from 1 to 8"]);
    tool("3").run().assert_one_error(2, &["--shard", "3/8"]);
    tool("1/29").run().assert_one_error(2, &["--shard", "28"]);
    let alone = tool("1/2").arg("--no-remote-lookup");
    alone
        .run()
        .assert_one_error(2, &["--no-remote-lookup", "shard 1/2"]);
    let pod = Tool::new(untouched()).args(["--partition", SAMPLE_PARTITION]);
    let pod = pod.env("JOB_COMPLETION_INDEX", "0");
    pod.run()
        .assert_one_error(2, &["JOB_COMPLETIONS", "--shard"]);
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
}

#[test]
fn a_shard_is_continued_as_the_same_shard_only() {
    let database = small_month("shards_continued");
    let state = tempfile::tempdir().unwrap();
    shard(&database, "1/2", state.path()).run().assert_code(0);
    let renamed = state.path().join("202406-1of3");
    std::fs::rename(state.path().join("202406-1of2"), renamed).unwrap();
    let other = shard(&database, "1/3", state.path());
    other
        .run()
        .assert_one_error(2, &["the shard", "1/2", "1/3"]);
}
