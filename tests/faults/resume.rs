//! A run that ends before its end can be continued, and then it is as if nothing had happened.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{
    Specification, ask_number, assert_complete, assert_equal, execute, keep_versions_apart,
};
use crate::support::{Database, Outcome, Running, SAMPLE_PARTITION, Server, Tool};

/// Enough for several segments, the least of which has 49,152 rows.
const OBSERVATIONS: u64 = 120_000;

/// How often the program is killed; EVENTS_BACKFILL_KILLS sets another number.
const KILLS: u64 = 10;

/// Sources that nobody changes, and the table `expected`.
fn month() -> &'static Database<'static> {
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    MONTH.get_or_init(|| {
        let database = Server::shared().sample_month("resume", OBSERVATIONS);
        // Few parts, so that segments may be short.
        execute(&database, "OPTIMIZE TABLE observations FINAL");
        Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
        database
    })
}

/// The program, with a new target of that name, one segment at a time, in small parts.
fn tool(target: &str) -> Tool {
    let database = month();
    execute(database, &format!("CREATE TABLE {target} AS events_full"));
    keep_versions_apart(database, &[target]);
    Tool::new(database).args([
        "--partition",
        SAMPLE_PARTITION,
        "--target-table",
        target,
        "--segment-rows",
        "50000",
        "--concurrency",
        "1",
        "--batch-size",
        "4000",
    ])
}

fn rows(target: &str) -> u64 {
    ask_number(month(), &format!("SELECT count() FROM {target}"))
}

/// Waits until rows have arrived, which they do while the first segment is in work.
fn wait_for_rows(run: &mut Running, target: &str) {
    let started = Instant::now();
    while rows(target) == 0 {
        assert!(
            run.is_running(),
            "the run ended before it had written anything"
        );
        assert!(started.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
}

/// A run that SIGTERM has ended in the middle of a segment.
fn interrupted(target: &str) -> Tool {
    let tool = tool(target);
    let mut run = tool.spawn();
    wait_for_rows(&mut run, target);
    run.terminate();
    run.wait().assert_code(143);
    tool
}

fn resume(tool: Tool) -> (Tool, Outcome) {
    let tool = tool.arg("--resume");
    let outcome = tool.run();
    (tool.without_arg("--resume"), outcome)
}

fn checkpoint(tool: &Tool) -> PathBuf {
    tool.state_dir().join(SAMPLE_PARTITION).join("checkpoint")
}

#[test]
fn a_run_killed_at_random_moments_ends_as_if_it_had_not_been() {
    let target = "killed";
    let kills = std::env::var("EVENTS_BACKFILL_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(KILLS);
    let seed = fastrand::u64(..);
    println!("seed {seed}, {kills} kills");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut tool = tool(target);
    let mut killed = 0;
    while killed < kills {
        tool = tool.without_arg("--resume");
        if checkpoint(&tool).exists() {
            tool = tool.arg("--resume");
        }
        let mut run = tool.spawn();
        thread::sleep(Duration::from_millis(random.u64(20..1_500)));
        if !run.is_running() {
            run.wait().assert_code(0);
            break;
        }
        run.kill();
        run.wait();
        killed += 1;
    }
    println!("killed {killed} times");
    tool = tool.without_arg("--resume").arg("--resume");
    if checkpoint(&tool).exists() {
        tool.run().assert_code(0);
    } else {
        tool.without_arg("--resume").run().assert_code(0);
    }
    assert_complete(month(), target);
    let again = rows(target) - ask_number(month(), &format!("SELECT count() FROM {target} FINAL"));
    println!("{again} rows were sent twice");
    assert_eq!(again, 0);
}

#[test]
fn a_signal_ends_the_run_within_seconds_and_it_can_be_resumed() {
    for (number, code) in [(15, 143), (2, 130)] {
        let target = format!("signal_{number}");
        let tool = tool(&target);
        let mut run = tool.spawn();
        wait_for_rows(&mut run, &target);
        let asked = Instant::now();
        run.signal(number);
        let outcome = run.wait();
        assert!(
            asked.elapsed() < Duration::from_secs(15),
            "{:?}",
            asked.elapsed()
        );
        outcome.assert_code(code).assert_stderr_contains("--resume");
        let (tool, outcome) = resume(tool);
        outcome.assert_code(0);
        let report = tool.report();
        assert_eq!(report["resumed"], true);
        assert_eq!(report["segments_done"], report["segments_total"]);
        let expected = ask_number(month(), "SELECT count() FROM expected");
        assert_eq!(report["observations_processed"], expected);
        assert_complete(month(), &target);
    }
}

#[test]
fn an_unfinished_run_is_neither_repeated_nor_continued_by_accident() {
    let tool = interrupted("words");
    let before = rows("words");
    tool.run()
        .assert_code(2)
        .assert_stderr_contains("--resume")
        .assert_stderr_contains("--restart")
        .assert_stderr_contains("segments done");
    assert_eq!(rows("words"), before);
    // A dry run does not touch it.
    let tool = tool.arg("--dry-run");
    tool.run().assert_code(0);
    let (tool, outcome) = resume(tool.without_arg("--dry-run"));
    outcome.assert_code(0);
    assert_complete(month(), "words");
    // What is finished stays finished.
    let written = rows("words");
    tool.run()
        .assert_code(0)
        .assert_stderr_contains("was finished");
    let (tool, outcome) = resume(tool);
    outcome
        .assert_code(0)
        .assert_stderr_contains("was finished");
    assert_eq!(rows("words"), written);
    // Unless it is to be done again.
    let tool = tool.arg("--restart");
    tool.run().assert_code(0);
    assert!(rows("words") > written);
}

#[test]
fn a_run_that_goes_on_leaves_alone_what_another_one_has_written_meanwhile() {
    let target = "meanwhile";
    let before = interrupted(target);
    // Somebody else has a state directory of their own, and does the whole month.
    let other = Tool::new(month()).args(["--partition", SAMPLE_PARTITION]);
    other.args(["--target-table", target]).run().assert_code(0);
    assert_equal(month(), "expected", target);
    let (_, outcome) = resume(before);
    outcome
        .assert_code(0)
        .assert_stderr_contains("than this run can have written");
    assert_equal(month(), "expected", target);
}

#[test]
fn there_must_be_something_to_resume() {
    let (tool, outcome) = resume(tool("nothing"));
    outcome
        .assert_code(2)
        .assert_stderr_contains("nothing to resume");
    // `status` would show what is left there as a run.
    assert!(!tool.state_dir().exists());
    assert_eq!(rows("nothing"), 0);
}

#[test]
fn a_run_is_only_continued_for_what_it_was_made_for() {
    let database = month();
    let refused = |tool: Tool, words: &[&str]| {
        let (tool, outcome) = resume(tool);
        outcome.assert_code(2);
        for word in words {
            outcome.assert_stderr_contains(word);
        }
        tool
    };
    let tool = interrupted("other");
    let tool = refused(tool.arg("--no-trace-metadata"), &["--no-trace-metadata"]);
    let tool = tool.without_arg("--no-trace-metadata");
    execute(database, "ALTER TABLE other ADD COLUMN later String");
    let tool = refused(tool, &["column later"]);
    // The same name, but not the same table.
    execute(database, "DROP TABLE other");
    execute(database, "CREATE TABLE other AS events_full");
    let tool = refused(tool, &["the identity of the target table"]);
    let tool = tool.arg("--restart");
    tool.run().assert_code(0);
    assert_complete(month(), "other");
}

#[test]
fn damaged_state_is_told_and_changes_nothing() {
    let tool = interrupted("damaged");
    let path = checkpoint(&tool);
    let intact = fs::read(&path).unwrap();
    let before = rows("damaged");
    let mut flipped = intact.clone();
    flipped[30] ^= 1;
    let mut renamed = intact.clone();
    renamed[0] = 0;
    for bytes in [flipped, renamed, intact[..20].to_vec(), Vec::new()] {
        fs::write(&path, bytes).unwrap();
        tool.run()
            .assert_code(2)
            .assert_stderr_contains("--restart");
    }
    fs::write(&path, &intact).unwrap();
    let store = tool.state_dir().join(SAMPLE_PARTITION).join("traces");
    fs::remove_file(first_file(&store)).unwrap();
    let (tool, outcome) = resume(tool);
    outcome.assert_code(1).assert_stderr_contains("--restart");
    fs::remove_dir_all(&store).unwrap();
    let (tool, outcome) = resume(tool);
    outcome
        .assert_code(1)
        .assert_stderr_contains("the store is missing");
    assert_eq!(rows("damaged"), before);
    tool.arg("--restart").run().assert_code(0);
    assert_complete(month(), "damaged");
}

/// A data file of the store.
fn first_file(store: &Path) -> PathBuf {
    let files = fs::read_dir(store)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
        .min()
        .unwrap()
}

#[test]
fn one_run_at_a_time_uses_a_state_directory() {
    let tool = tool("twice");
    let mut first = tool.spawn();
    wait_for_rows(&mut first, "twice");
    let holder = format!("process {}", first.id());
    let (tool, second) = resume(tool);
    second.assert_code(2).assert_stderr_contains(&holder);
    // A dead process leaves no lock behind.
    first.kill();
    first.wait();
    let (_, outcome) = resume(tool);
    outcome.assert_code(0);
    assert_complete(month(), "twice");
}

#[test]
fn nothing_but_checkpoint_and_report_is_left_after_success() {
    let tool = tool("tidy");
    tool.run().assert_code(0);
    let state = tool.state_dir().join(SAMPLE_PARTITION);
    assert!(!state.join("traces").exists());
    assert!(state.join("checkpoint").exists());
    let report = fs::read(state.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report, tool.report());
    let tool = tool.args(["--restart", "--keep-traces"]);
    tool.run().assert_code(0);
    assert!(state.join("traces").exists());
    let tool = tool.without_arg("--keep-traces").arg("--dry-run");
    tool.run().assert_code(0);
    let left: Vec<_> = fs::read_dir(tool.state_dir()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
