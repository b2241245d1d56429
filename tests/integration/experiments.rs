//! The spans of dataset runs say to which experiment they belong, and no others do.

use crate::support::differential::{
    Specification, add_experiments, ask, ask_number, assert_equal, execute, keep_versions_apart,
};
use crate::support::{Database, SAMPLE_PARTITION, Server, Tool};

/// Observations, as `(project, trace, id, parent, timestamp, version, is deleted)`.
type Observation = (
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
    &'static str,
    u32,
    bool,
);

const JUNE: &str = "2024-06-10 12:00:00";
const MAY: &str = "2024-05-31 12:00:00";

const OBSERVATIONS: &[Observation] = &[
    // An item points at the trace as a whole.
    ("one", "whole", "a", None, JUNE, 1, false),
    ("one", "whole", "b", Some("a"), JUNE, 1, false),
    ("one", "whole", "c", Some("b"), JUNE, 1, false),
    ("one", "whole", "empty parent", Some(""), JUNE, 1, false),
    (
        "one",
        "whole",
        "parent is not there",
        Some("nowhere"),
        JUNE,
        1,
        false,
    ),
    ("one", "whole", "circle 1", Some("circle 2"), JUNE, 1, false),
    ("one", "whole", "circle 2", Some("circle 1"), JUNE, 1, false),
    // One points at a span in the middle, another further down, a third beside it.
    ("one", "nested", "a", None, JUNE, 1, false),
    ("one", "nested", "b", Some("a"), JUNE, 1, false),
    ("one", "nested", "c", Some("b"), JUNE, 1, false),
    ("one", "nested", "d", Some("c"), JUNE, 1, false),
    ("one", "nested", "e", Some("d"), JUNE, 1, false),
    ("one", "nested", "f", Some("e"), JUNE, 1, false),
    ("one", "nested", "beside", Some("a"), JUNE, 1, false),
    ("one", "nested", "below it", Some("beside"), JUNE, 1, false),
    // A span in between is in another month, or is deleted, or was moved to another parent.
    ("one", "months", "a", None, JUNE, 1, false),
    ("one", "months", "b", Some("a"), MAY, 1, false),
    ("one", "months", "c", Some("b"), JUNE, 1, false),
    ("one", "months", "gone", Some("a"), JUNE, 1, false),
    ("one", "months", "gone", Some("a"), JUNE, 2, true),
    ("one", "months", "below", Some("gone"), JUNE, 1, false),
    ("one", "months", "moved", Some("gone"), JUNE, 1, false),
    ("one", "months", "moved", Some("c"), JUNE, 2, false),
    // An item points at a circle.
    ("one", "circle", "a", Some("b"), JUNE, 1, false),
    ("one", "circle", "b", Some("c"), JUNE, 1, false),
    ("one", "circle", "c", Some("a"), JUNE, 1, false),
    ("one", "circle", "d", Some("c"), JUNE, 1, false),
    // The root span is an observation.
    ("one", "own root", "a", Some("t-own root"), JUNE, 1, false),
    // Two items point at the same span; one that was deleted; one of another project.
    ("one", "twice", "a", None, JUNE, 1, false),
    ("one", "deleted item", "a", None, JUNE, 1, false),
    ("one", "other project", "a", None, JUNE, 1, false),
    ("two", "other project", "a", None, JUNE, 1, false),
    // The same ids, cut elsewhere.
    ("one", "whole2", "a", None, JUNE, 1, false),
    // All in another month.
    ("one", "in may", "a", None, MAY, 1, false),
    // No item.
    ("one", "plain", "a", None, JUNE, 1, false),
    ("one", "plain", "b", Some("a"), JUNE, 1, false),
];

/// Ids of observations are those of the list below, behind their trace's: an id is in one trace.
fn span_id(trace: &str, id: &str) -> String {
    match id.is_empty() || id.starts_with("t-") {
        true => id.to_owned(),
        false => format!("{trace} {id}"),
    }
}

fn nullable(id: Option<String>) -> String {
    id.map_or("NULL".to_owned(), |id| format!("'{id}'"))
}

/// Items, as `(project, id, trace, observation, hour of creation, version, is deleted)`.
type Item = (
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
    u32,
    u32,
    bool,
);

const ITEMS: &[Item] = &[
    ("one", "i-whole", "whole", None, 1, 1, false),
    ("one", "i-middle", "nested", Some("b"), 1, 1, false),
    ("one", "i-down", "nested", Some("e"), 1, 1, false),
    ("one", "i-beside", "nested", Some("beside"), 1, 1, false),
    ("one", "i-months", "months", Some("a"), 1, 1, false),
    ("one", "i-circle", "circle", Some("b"), 1, 1, false),
    ("one", "i-own", "own root", Some(""), 1, 1, false),
    ("one", "i-first", "twice", Some("a"), 1, 1, false),
    ("one", "i-second", "twice", Some("a"), 2, 1, false),
    ("one", "i-as-late", "twice", Some("a"), 2, 1, false),
    ("one", "i-old", "twice", Some("a"), 3, 1, false),
    ("one", "i-old", "twice", Some("a"), 3, 2, true),
    ("one", "i-deleted", "deleted item", None, 1, 1, false),
    ("one", "i-deleted", "deleted item", None, 1, 2, true),
    ("two", "i-other", "other project", None, 1, 1, false),
    ("one", "i-may", "in may", None, 1, 1, false),
    ("one", "i-nowhere", "not there", None, 1, 1, false),
    ("one", "i-no-span", "plain2", Some("nowhere"), 1, 1, false),
];

fn trees(name: &str) -> Database<'static> {
    let database = Server::shared().database(name);
    database.load_schema();
    keep_versions_apart(&database, &["traces", "observations", "events_full"]);
    for (project, trace, id, parent, time, version, is_deleted) in OBSERVATIONS {
        let id = span_id(trace, id);
        let parent = nullable(parent.map(|parent| span_id(trace, parent)));
        execute(
            &database,
            &format!(
                "INSERT INTO observations (project_id, trace_id, id, parent_observation_id, type, \
                     start_time, event_ts, is_deleted) VALUES ('{project}', '{trace}', '{id}', \
                     {parent}, 'SPAN', '{time}', {version}, {is_deleted})"
            ),
        );
    }
    execute(
        &database,
        "INSERT INTO traces (project_id, id, timestamp, name, user_id, event_ts, is_deleted) \
         SELECT DISTINCT project_id, trace_id, toDateTime64(if(trace_id = 'in may', \
             '2024-05-31 12:00:00', '2024-06-10 12:00:00'), 3), 'name', 'user', 1, 0 \
         FROM observations",
    );
    for (project, id, trace, observation, hour, version, is_deleted) in ITEMS {
        let observation = nullable(observation.map(|id| span_id(trace, id)));
        let with_version = hour % 2 == 1;
        let item_version = if with_version {
            "'2024-01-02 03:04:05.678'"
        } else {
            "NULL"
        };
        execute(
            &database,
            &format!(
                "INSERT INTO dataset_run_items_rmt (project_id, id, trace_id, observation_id, \
                     dataset_id, dataset_run_id, dataset_item_id, dataset_run_name, \
                     dataset_run_description, dataset_run_metadata, dataset_item_version, \
                     dataset_item_expected_output, dataset_item_metadata, created_at, event_ts, is_deleted) \
                 VALUES ('{project}', '{id}', '{trace}', {observation}, 'dataset', 'run of {id}', \
                     'item of {id}', 'name of {id}', {item_version}, map('run', '{id}', 'b', 'c'), \
                     {item_version}, {item_version}, map('item', '{id}'), \
                     '2024-06-11 0{hour}:00:00', {version}, {is_deleted})"
            ),
        );
    }
    database
}

fn tool(database: &Database) -> Tool {
    Tool::new(database).args(["--partition", SAMPLE_PARTITION])
}

/// Fills the table `expected` for a run with root spans and experiments.
fn expect(database: &Database) {
    Specification::current().fill(database, SAMPLE_PARTITION, "events_full", "expected");
    Specification::of_root_spans().add(database, SAMPLE_PARTITION, "expected");
    add_experiments(database, "expected");
}

#[test]
fn spans_belong_to_the_nearest_item_above_them() {
    let database = trees("trees");
    expect(&database);
    let tool = tool(&database).args(["--root-spans", "--experiments"]);
    tool.run().assert_code(0);
    assert_equal(&database, "expected", "events_full");
    let owned = |trace: &str| {
        ask(
            &database,
            &format!(
                "SELECT arraySort(groupArray((replaceOne(span_id, '{trace} ', ''), experiment_id))) \
                 FROM events_full \
                 WHERE project_id = 'one' AND trace_id = '{trace}' AND experiment_id != ''"
            ),
        )
    };
    assert_eq!(
        owned("nested"),
        "[('b','run of i-middle'),('below it','run of i-beside'),('beside','run of i-beside'),\
         ('c','run of i-middle'),('d','run of i-middle'),('e','run of i-down'),('f','run of i-down')]"
    );
    // Below a span that was deleted, and one of another month.
    assert_eq!(
        owned("months"),
        "[('a','run of i-months'),('below','run of i-months'),('c','run of i-months'),\
         ('moved','run of i-months')]"
    );
    assert_eq!(owned("twice"), "[('a','run of i-second')]");
    assert_eq!(owned("deleted item"), "[]");
    assert_eq!(owned("other project"), "[]");
    let all = "SELECT count() FROM expected WHERE experiment_id != ''";
    let all = ask_number(&database, all);
    assert_eq!(tool.report()["spans_in_experiments"], all);
    assert!(all > 20, "{all}");
}

#[test]
fn a_root_span_that_is_an_observation_has_its_descendants() {
    let database = trees("own_root");
    execute(
        &database,
        &format!(
            "INSERT INTO observations (project_id, trace_id, id, parent_observation_id, type, \
                 start_time, event_ts, is_deleted) \
             VALUES ('one', 'own root', 't-own root', 'own root a', 'SPAN', '{JUNE}', 1, 0)"
        ),
    );
    let tool = tool(&database).arg("--experiments");
    tool.run().assert_code(0);
    let owned = ask(
        &database,
        "SELECT arraySort(groupArray((span_id, experiment_id, experiment_item_root_span_id))) \
         FROM events_full WHERE trace_id = 'own root'",
    );
    assert_eq!(
        owned,
        "[('own root a','run of i-own','t-own root'),('t-own root','run of i-own','t-own root')]"
    );
}

#[test]
fn a_month_with_every_oddity_gets_its_experiments() {
    let database = Server::shared().database("experiments_month");
    database.load_schema();
    keep_versions_apart(&database, &["traces", "observations", "events_full"]);
    database.load_sample_month(20_000);
    expect(&database);
    let rows = ask_number(
        &database,
        "SELECT count() FROM expected WHERE experiment_id != ''",
    );
    assert!(rows > 200, "{rows} spans in experiments");
    for (target, extra) in [
        ("events_full", ["--segment-rows", "3000"]),
        ("events_lz4", ["--compression", "lz4"]),
    ] {
        execute(
            &database,
            &format!("CREATE TABLE IF NOT EXISTS {target} AS events_full"),
        );
        let tool = tool(&database)
            .args(["--root-spans", "--experiments", "--target-table", target])
            .args(extra);
        tool.run().assert_code(0);
        assert_equal(&database, "expected", target);
        assert_eq!(tool.report()["spans_in_experiments"], rows);
    }
}

#[test]
fn experiments_win_over_what_was_written_without_them() {
    let database = trees("experiments_later");
    expect(&database);
    let tool = tool(&database).arg("--root-spans");
    tool.run().assert_code(0);
    let tool = tool.args(["--experiments", "--restart"]);
    tool.run().assert_code(0);
    assert_equal(&database, "expected", "events_full FINAL");
    // The other way round they would be lost.
    let tool = tool.without_arg("--experiments");
    tool.run().assert_one_error(2, &["--experiments", "remove"]);
    assert_equal(&database, "expected", "events_full FINAL");
}

#[test]
fn a_run_with_experiments_that_is_killed_ends_as_if_it_had_not_been() {
    let database = Server::shared().sample_month("experiments_killed", 30_000);
    expect(&database);
    let tool = tool(&database).args([
        "--root-spans",
        "--experiments",
        "--segment-rows",
        "1000",
        "--batch-size",
        "1000",
    ]);
    let checkpoint = tool.state_dir().join(SAMPLE_PARTITION).join("checkpoint");
    tool.run_with_kills(10, &checkpoint);
    execute(&database, "OPTIMIZE TABLE events_full FINAL");
    assert_equal(&database, "expected", "events_full");
}

#[test]
fn a_target_without_columns_for_experiments_is_refused_before_anything_is_written() {
    let database = trees("no_experiment_columns");
    let columns = ask(
        &database,
        "SELECT arrayStringConcat(groupArray(name), ', ') FROM system.columns \
         WHERE database = currentDatabase() AND table = 'events_full' \
             AND name NOT LIKE 'experiment%' AND default_kind NOT IN ('MATERIALIZED', 'ALIAS')",
    );
    execute(
        &database,
        &format!(
            "CREATE TABLE events_before ENGINE = ReplacingMergeTree(event_ts, is_deleted) \
             ORDER BY (project_id, start_time, trace_id, span_id) AS SELECT {columns} FROM events_full LIMIT 0"
        ),
    );
    tool(&database)
        .args(["--experiments", "--target-table", "events_before"])
        .run()
        .assert_one_error(2, &["events_before", "experiment_id", "--experiments"]);
}
