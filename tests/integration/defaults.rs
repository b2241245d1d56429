//! What a run does of which nothing is said: a complete month into `events_full`, and what there is
//! a place for into an older table.

use crate::support::{Database, Outcome, SAMPLE_PARTITION, Tool, repository_file, small_month};

fn tool(database: &Database) -> Tool {
    let tool = Tool::new(database).with_defaults();
    tool.args(["--partition", SAMPLE_PARTITION])
}

/// The program before a command, not every one of which takes a state directory.
fn all(database: &Database) -> Tool {
    Tool::new(database)
        .with_defaults()
        .env("STATE_DIR", "state")
}

fn execute(database: &Database, sql: &str) {
    let done = database.query(sql);
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Root spans, spans of experiments and all others in a table.
fn written(database: &Database, table: &str) -> [u64; 3] {
    let sql = format!(
        "SELECT countIf(span_id = concat('t-', trace_id)), countIf(experiment_id != ''), \
         countIf(span_id != concat('t-', trace_id)) FROM {table}"
    );
    let counts = database.query(&sql).unwrap();
    let mut counts = counts.split_whitespace().map(|one| one.parse().unwrap());
    [(); 3].map(|()| counts.next().unwrap())
}

/// Links an item to a trace.
fn link(database: &Database, id: &str, trace: &str) {
    execute(
        database,
        &format!(
            "INSERT INTO dataset_run_items_rmt (id, project_id, dataset_run_id, dataset_item_id, \
                 dataset_id, trace_id, dataset_run_name, event_ts, is_deleted) \
             VALUES ('{id}', 'project', 'a run', 'item of {id}', 'a dataset', '{trace}', \
                 'a run', '2024-06-03 12:00:00', 0)"
        ),
    );
}

#[track_caller]
fn assert_says(outcome: &Outcome, word: &str, times: usize) {
    let said = outcome.stderr.matches(word).count();
    assert_eq!(said, times, "{word}\n{}", outcome.stderr);
}

#[test]
fn a_month_is_complete_unless_something_else_is_said() {
    let database = small_month("defaults");
    link(&database, "i", "trace-1");
    let tool_of = |extra: &[&str]| {
        execute(&database, "TRUNCATE TABLE events_full");
        execute(&database, "TRUNCATE TABLE events_core");
        tool(&database).args(extra.iter().copied())
    };
    // Three spans: the root of the trace and two below it.
    for (extra, expected) in [
        (&[][..], [3, 3, 6]),
        (&["--root-spans", "--experiments"], [3, 3, 6]),
        (&["--no-experiments"], [3, 0, 6]),
        (&["--no-root-spans"], [0, 2, 6]),
        (&["--no-root-spans", "--no-experiments"], [0, 0, 6]),
        (&["--only", "root-spans"], [3, 1, 0]),
        // Without experiments, since it would have no effect with them.
        (&["--exclude-dataset-items"], [2, 0, 4]),
        (&["--exclude-dataset-items", "--experiments"], [3, 3, 6]),
    ] {
        let tool = tool_of(extra);
        tool.run().assert_code(0);
        assert_eq!(written(&database, "events_full"), expected, "{extra:?}");
        if !extra.contains(&"--only") {
            let verify = all(&database).arg("verify");
            let verify = verify.args(["--partition", SAMPLE_PARTITION]);
            verify.args(extra.iter().copied()).run().assert_code(0);
        }
    }
    let tool = tool_of(&[]).env("NO_ROOT_SPANS", "true");
    tool.env("NO_EXPERIMENTS", "true").run().assert_code(0);
    assert_eq!(written(&database, "events_full"), [0, 0, 6]);
    let tool = tool_of(&[]).arg("--all-partitions");
    let tool = tool
        .without_arg("--partition")
        .without_arg(SAMPLE_PARTITION);
    tool.run().assert_code(0);
    assert_eq!(written(&database, "events_full"), [3, 4, 7]);
}

#[test]
fn a_contradiction_is_refused() {
    let database = small_month("contradiction");
    for extra in [
        &["--root-spans", "--no-root-spans"][..],
        &["--experiments", "--no-experiments"],
        &["--only", "root-spans", "--no-root-spans"],
    ] {
        let outcome = tool(&database).args(extra.iter().copied()).run();
        outcome.assert_code(2);
    }
    let tool = tool(&database).env("ROOT_SPANS", "true");
    let tool = tool.env("NO_ROOT_SPANS", "true");
    tool.run()
        .assert_one_error(2, &["ROOT_SPANS", "NO_ROOT_SPANS"]);
}

#[test]
fn an_older_table_gets_what_it_has_a_place_for_and_a_warning() {
    let database = small_month("older_default");
    for table in ["events_core_mv", "events_core", "events_full"] {
        execute(&database, &format!("DROP TABLE {table}"));
    }
    database.execute_file(&repository_file("bench-data/older-events.sql"), &[]);
    link(&database, "i", "trace-1");
    let outcome = tool(&database).run();
    outcome.assert_code(0);
    assert_eq!(written_older(&database), [0, 6]);
    assert_says(&outcome, "Langfuse v4 never reads", 1);
    for command in ["plan", "verify"] {
        let outcome = all(&database).args([command, "--all-partitions"]).run();
        assert_says(&outcome, "Langfuse v4 never reads", 1);
    }
    // It is worth an alert, and may be made an error.
    let quiet = all(&database).args(["--all-partitions", "--restart", "--quiet"]);
    let outcome = quiet.args(["--log-format", "json"]).run();
    let line = outcome.stderr.lines().next().unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["level"], "warning");
    let strict = tool(&database).args(["--restart", "--strict"]).run();
    strict.assert_one_error(2, &["Langfuse v4 never reads", "--strict"]);
    let tool = tool(&database).args(["--root-spans", "--restart"]);
    tool.run().assert_code(0);
    assert_eq!(written_older(&database)[0], 3);
}

/// Root spans and all others in the older table.
fn written_older(database: &Database) -> [u64; 2] {
    let sql = "SELECT countIf(span_id = concat('t-', trace_id)), \
               countIf(span_id != concat('t-', trace_id)) FROM events FINAL";
    let counts = database.query(sql).unwrap();
    let mut counts = counts.split_whitespace().map(|one| one.parse().unwrap());
    [(); 2].map(|()| counts.next().unwrap())
}

#[test]
fn without_dataset_run_items_experiments_cost_nothing() {
    let database = small_month("no_items");
    let outcome = tool(&database).run();
    outcome.assert_code(0);
    assert_says(&outcome, "dataset runs", 0);
    assert_eq!(written(&database, "events_full"), [3, 0, 6]);
    execute(&database, "DROP TABLE dataset_run_items_rmt");
    let again = tool(&database);
    let outcome = again.run();
    outcome.assert_code(0);
    assert_says(&outcome, "no table dataset_run_items_rmt", 1);
    let asked = tool(&database).arg("--experiments").run();
    asked.assert_one_error(2, &["--experiments", "dataset_run_items_rmt"]);
}

#[test]
fn the_first_item_does_not_keep_a_run_from_going_on() {
    let database = small_month("first_item");
    let tool = tool(&database);
    tool.run().assert_code(0);
    assert_eq!(written(&database, "events_full"), [3, 0, 6]);
    link(&database, "i", "trace-1");
    // It is finished for what it was made for.
    let again = tool.run();
    again.assert_code(0);
    assert_says(&again, "was finished", 1);
    let several = tool.arg("--partition").arg("202407");
    several.run().assert_code(0);
    assert_eq!(written(&database, "events_full"), [3, 1, 7]);
    // And is done again with what there is now.
    let restarted = several.arg("--restart");
    restarted.run().assert_code(0);
    let spans = "SELECT uniqExactIf(span_id, experiment_id != '') FROM events_full";
    assert_eq!(database.query(spans).unwrap(), "4\n");
    // Then not without them.
    execute(&database, "TRUNCATE TABLE dataset_run_items_rmt");
    restarted
        .run()
        .assert_one_error(2, &["wrote experiments", "--experiments"]);
}
