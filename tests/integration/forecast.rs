//! `plan` says what a run would do, and does none of it.

use std::collections::BTreeSet;
use std::fs;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::proxy::{Action, FOREVER, Fault, Place, Proxy};
use crate::support::{
    Database, LIMITED, Options, Outcome, READER, SAMPLE_PARTITION, Server, Tool, small_month,
    untouched,
};
use serde_json::{Value, json};

/// In the statement that reads a segment, and in no other.
const SEGMENT: &str = "FINAL ARRAY JOIN [1]";

/// Enough for several segments, the least of which has 65,536 rows where there is one part.
const OBSERVATIONS: u64 = 150_000;

/// Sources that nobody changes, for several segments.
fn month() -> &'static Database<'static> {
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    MONTH.get_or_init(|| {
        let database = Server::shared().sample_month("forecast", OBSERVATIONS);
        // Few parts, so that segments may be short; and none that do not know their columns' sizes.
        for table in ["observations", "traces"] {
            database
                .query(&format!(
                    "ALTER TABLE {table} MODIFY SETTING min_bytes_for_wide_part = 0"
                ))
                .unwrap();
            database
                .query(&format!("OPTIMIZE TABLE {table} FINAL"))
                .unwrap();
        }
        database
    })
}

/// The program on the sample month, with short segments.
fn tool(database: &Database) -> Tool {
    Tool::new(database).args(["--partition", SAMPLE_PARTITION, "--segment-rows", "50000"])
}

/// The same as a plan: the command comes before its flags.
fn plan(database: &Database) -> Tool {
    Tool::new(database).args([
        "plan",
        "--partition",
        SAMPLE_PARTITION,
        "--segment-rows",
        "50000",
    ])
}

/// The step of the time with this name.
#[track_caller]
fn step<'a>(forecast: &'a Value, name: &str) -> &'a Value {
    let steps = forecast["time"]["steps"]
        .as_array()
        .expect("it is an array");
    steps
        .iter()
        .find(|step| step["name"] == name)
        .unwrap_or_else(|| panic!("{name}: {steps:?}"))
}

/// A duration as the plan tells it.
#[track_caller]
fn assert_is_estimate(words: &str) {
    let is_estimate = words.starts_with("about ") || words == "less than a second";
    assert!(is_estimate, "{words}");
}

#[track_caller]
fn seconds(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("it is {value}"))
}

fn ask(database: &Database, sql: &str) -> u64 {
    let answer = database
        .query(sql)
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    answer
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{sql}: {answer}"))
}

#[track_caller]
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("it is {value}"))
}

/// The value of a line of the summary.
#[track_caller]
fn line(outcome: &Outcome, name: &str) -> String {
    outcome
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| panic!("{name}\n{}", outcome.stdout))
        .trim()
        .to_owned()
}

/// An aggregate over the parts of the sample partition of a table.
fn of_parts(table: &str, aggregate: &str) -> u64 {
    of(month(), "system.parts", table, aggregate, "1")
}

/// An aggregate over the columns of the sample partition of a table.
fn of_columns(table: &str, aggregate: &str, condition: &str) -> u64 {
    of(month(), "system.parts_columns", table, aggregate, condition)
}

fn of(database: &Database, system: &str, table: &str, aggregate: &str, condition: &str) -> u64 {
    ask(
        database,
        &format!(
            "SELECT {aggregate} FROM {system} WHERE active AND database = currentDatabase() \
             AND table = '{table}' AND partition_id = '{SAMPLE_PARTITION}' AND {condition}"
        ),
    )
}

// -------------------------------------------------------------------------------------------------
// What it does not do
// -------------------------------------------------------------------------------------------------

#[test]
fn the_time_includes_finding_the_spans_of_dataset_runs() {
    let database = month();
    let outcome = plan(database).with_defaults().arg("--json").run();
    outcome.assert_code(0);
    let forecast: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let of_items =
        "(project_id, trace) IN (SELECT project_id, trace_id FROM dataset_run_items_rmt FINAL)";
    let traces = ask(
        database,
        &format!(
            "SELECT uniqExact(project_id, trace) FROM (
                SELECT project_id, trace_id AS trace FROM observations
                WHERE toYYYYMM(start_time) = {SAMPLE_PARTITION} AND {of_items}
                UNION ALL
                SELECT project_id, id AS trace FROM traces
                WHERE toYYYYMM(timestamp) = {SAMPLE_PARTITION} AND {of_items})"
        ),
    );
    assert!(traces > 0);
    let experiments = &forecast["sample"]["experiments"];
    assert_eq!(number(&experiments["traces"]), traces);
    assert_eq!(number(&experiments["found"]["rows"]), traces);
    let step = step(&forecast, "find dataset runs");
    assert!(seconds(&step["seconds"]) > 0.0);
    let basis = step["basis"].as_str().unwrap();
    assert!(basis.starts_with("measured"), "{basis}");
    // Where a run does not look for them, it takes no time.
    let without = plan(database).arg("--json").run();
    let forecast: Value = serde_json::from_str(&without.stdout).unwrap();
    assert_eq!(forecast["sample"]["experiments"], Value::Null);
    let steps = forecast["time"]["steps"].as_array().unwrap();
    assert!(steps.iter().all(|step| step["name"] != "find dataset runs"));
}

#[test]
fn a_plan_writes_nothing_and_needs_only_the_right_to_read() {
    let database = month();
    let tool = plan(database)
        .env("CLICKHOUSE_USER", READER.0)
        .env("CLICKHOUSE_PASSWORD", READER.1);
    tool.run().assert_code(0);
    assert_eq!(ask(database, "SELECT count() FROM events_full"), 0);
    assert_eq!(ask(database, "SELECT count() FROM events_core"), 0);
    // Not even the state directory: the report is all there is.
    let left: Vec<_> = fs::read_dir(tool.directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["report.json"]);
    // This user has done nothing else on this server.
    database.query("SYSTEM FLUSH LOGS query_log").unwrap();
    let kinds = database
        .query(&format!(
            "SELECT DISTINCT query_kind FROM system.query_log \
             WHERE user = '{}' AND query NOT LIKE 'CHECK GRANT INSERT%'",
            READER.0
        ))
        .unwrap();
    assert_eq!(kinds, "Select\n");
}

#[test]
fn a_plan_changes_nothing_in_a_state_directory_that_is_there() {
    let database = small_month("state");
    let run = Tool::new(&database).args(["--partition", SAMPLE_PARTITION]);
    run.run().assert_code(0);
    let state = run.state_dir().join(SAMPLE_PARTITION);
    let content = || {
        let mut files: Vec<_> = fs::read_dir(&state)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (fs::metadata(&path).unwrap().modified().unwrap(), path))
            .collect();
        files.sort();
        files
    };
    let before = content();
    let outcome = plan(&database)
        .arg("--state-dir")
        .arg(run.state_dir())
        .run();
    outcome.assert_code(0);
    assert_eq!(before, content());
    // What a run would find there is told.
    assert!(outcome.stdout.contains("--restart"), "{}", outcome.stdout);
}

// -------------------------------------------------------------------------------------------------
// What it says
// -------------------------------------------------------------------------------------------------

#[test]
fn a_plan_agrees_with_the_tables_and_with_the_run_that_follows() {
    let database = month();
    database
        .query("CREATE TABLE followed AS events_full")
        .unwrap();
    database.query("SYSTEM STOP MERGES followed").unwrap();
    let arguments = ["--target-table", "followed"];
    // Without a margin, so that what is read is exactly a partition.
    let tool = plan(database)
        .args(arguments)
        .args(["--trace-margin-days", "0"]);
    let outcome = tool.run();
    outcome.assert_code(0);
    assert_eq!(outcome.stderr, "");
    let forecast = tool.report();

    assert_eq!(forecast["partition"], SAMPLE_PARTITION);
    let target = format!("{}.followed", database.name);
    assert_eq!(forecast["target_table"], *target);
    for table in ["observations", "traces"] {
        let source = &forecast[table];
        assert_eq!(number(&source["rows"]), of_parts(table, "sum(rows)"));
        assert_eq!(number(&source["parts"]), of_parts(table, "count()"));
        // All columns but those that are not read: events compute their total cost themselves.
        let condition = match table {
            "observations" => "column != 'total_cost'",
            _ => "column NOT IN ('input', 'output', 'environment', 'created_at', 'updated_at')",
        };
        for (field, column) in [
            ("compressed", "sum(column_data_compressed_bytes)"),
            ("uncompressed", "sum(column_data_uncompressed_bytes)"),
        ] {
            assert_eq!(
                number(&source["bytes"][field]),
                of_columns(table, column, condition),
                "{table} {field}"
            );
        }
    }
    assert_eq!(forecast["events_there"], 0);
    assert_eq!(forecast["warnings"], json!([]));
    let written = number(&forecast["write_bytes"]);
    let read = number(&forecast["observations"]["bytes"]["uncompressed"]);
    assert!(written > read / 2 && written < 3 * read, "{written} {read}");

    for (name, value) in [
        ("Partition", SAMPLE_PARTITION.to_owned()),
        ("Target table", target),
        ("Existing events", "none in this month".to_owned()),
    ] {
        let line = line(&outcome, name);
        assert!(line.starts_with(&value), "{name} {line}");
    }
    let rows = line(&outcome, "Observations").replace(',', "");
    assert!(rows.starts_with(&forecast["observations"]["rows"].to_string()));
    assert!(
        rows.contains(&format!("{} segments", forecast["segments"])),
        "{rows}"
    );

    let run = self::tool(database).args(arguments);
    run.run().assert_code(0);
    let report = run.report();
    assert_eq!(report["segments_total"], forecast["segments"]);
    assert!(number(&forecast["segments"]) > 1);
    // Of several versions of a row one is processed.
    assert!(number(&report["observations_processed"]) <= number(&forecast["observations"]["rows"]));
    assert!(number(&report["traces_loaded"]) <= number(&forecast["traces"]["rows"]));
    let needed = number(&forecast["trace_store"]["needed_bytes"]);
    let taken = number(&report["store_bytes"]);
    println!("the trace store took {taken} of {needed} bytes");
    assert!(taken <= needed, "{taken} {needed}");

    tool.run().assert_code(0);
    let there = ask(database, "SELECT count() FROM followed");
    assert_eq!(tool.report()["events_there"], there);
}

#[test]
fn a_killed_run_takes_no_more_disk_than_the_plan_says_of_a_resume() {
    let database = Server::shared().sample_month("plan_killed", OBSERVATIONS);
    let plan = plan(&database);
    let outcome = plan.run();
    outcome.assert_code(0);
    let words = line(&outcome, "Trace store disk");
    assert!(words.contains(" more to resume after a kill; "), "{words}");
    let store = &plan.report()["trace_store"];
    let run = self::tool(&database);
    let checkpoint = run.state_dir().join(SAMPLE_PARTITION).join("checkpoint");
    let run = run.run_with_kills(3, &checkpoint);
    let taken = number(&run.report()["store_bytes"]);
    let most = number(&store["needed_bytes"]) + number(&store["resume_bytes"]);
    println!("the trace store took {taken} of {store}");
    assert!(taken <= most, "{taken} {most}");
    // The events that are there are part of the next one.
    plan.run().assert_code(0);
    let there = number(&plan.report()["events_there"]);
    let more =
        number(&plan.report()["trace_store"]["needed_bytes"]) - number(&store["needed_bytes"]);
    assert_eq!(more, there * 43);
}

#[test]
fn the_disk_that_events_take_is_estimated_from_the_sources_or_from_the_events_that_are_there() {
    let database = Server::shared().sample_month("disk", OBSERVATIONS);
    let tool = plan(&database);
    tool.run().assert_code(0);
    let before = tool.report();
    self::tool(&database).run().assert_code(0);
    let sizes = ["events_full", "events_core"].map(|table| {
        database
            .query(&format!("OPTIMIZE TABLE {table} FINAL"))
            .unwrap();
        let size = of(&database, "system.parts", table, "sum(bytes_on_disk)", "1");
        (format!("{}.{table}", database.name), size)
    });
    tool.run().assert_code(0);
    let after = tool.report();
    for (forecast, words, most) in [
        (&before, "source columns", 3.0),
        (&after, "existing rows", 1.3),
    ] {
        let tables = forecast["server_disk"]["tables"].as_array().unwrap();
        assert_eq!(tables.len(), sizes.len());
        for (estimate, (name, size)) in tables.iter().zip(&sizes) {
            assert_eq!(estimate["table"], **name);
            let bytes = number(&estimate["bytes"]);
            let ratio = bytes as f64 / *size as f64;
            println!("{name}: {bytes} of {size} bytes, {ratio:.2}");
            assert!(ratio > 0.8 && ratio < most, "{name} {ratio}");
            let from = estimate["estimated_from"].as_str().unwrap();
            assert!(from.contains(words), "{from}");
        }
        let sum: u64 = tables.iter().map(|table| number(&table["bytes"])).sum();
        assert_eq!(forecast["server_disk"]["needed_bytes"], sum);
        assert_eq!(forecast["server_disk"]["disks"], json!(["default"]));
        assert!(number(&forecast["server_disk"]["free_bytes"]) > 0);
    }
}

#[test]
fn what_does_not_fit_on_the_server_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let server = |config: &str| {
        Server::start(Options {
            config: config.to_owned(),
            data: Some(data.clone()),
            ..Options::default()
        })
    };
    let filled = server("");
    let name = {
        let database = filled.database("full");
        database.load_small_month();
        database.name
    };
    drop(filled);
    // More than any disk has is to be kept free.
    let full = server(
        "<storage_configuration><disks><default>
            <keep_free_space_bytes>1000000000000000</keep_free_space_bytes>
        </default></disks></storage_configuration>",
    );
    let database = Database {
        server: &full,
        name,
    };
    let tool = plan(&database);
    let outcome = tool.run();
    outcome.assert_code(0);
    let warnings = tool.report()["warnings"].clone();
    let warning = warnings[0].as_str().expect("there is a warning");
    assert!(warning.contains("default has only 0 B free"), "{warning}");
    assert!(outcome.stdout.contains(&format!("warning: {warning}")));
}

#[test]
fn what_a_user_may_not_see_is_told_and_the_rest_is_planned() {
    let server = Server::start(Options {
        config: "<access_control_improvements>
                <select_from_system_db_requires_grant>true</select_from_system_db_requires_grant>
            </access_control_improvements>"
            .to_owned(),
        ..Options::default()
    });
    let database = server.database("limited");
    database.load_small_month();
    let tool = plan(&database)
        .env("CLICKHOUSE_USER", LIMITED.0)
        .env("CLICKHOUSE_PASSWORD", LIMITED.1);
    let outcome = tool.run();
    outcome.assert_code(0);
    let forecast = tool.report();
    assert_eq!(forecast["server_disk"]["free_bytes"], Value::Null);
    assert!(number(&forecast["server_disk"]["needed_bytes"]) > 0);
    assert_eq!(forecast["segments"], 1);
    assert!(line(&outcome, "Server disk").contains("unknown"));
    let notes = forecast["notes"].to_string();
    assert!(
        notes.contains("may not read the free disk space (system.disks"),
        "{notes}"
    );
}

#[test]
fn json_on_standard_output_is_what_the_report_has() {
    let tool = plan(untouched()).arg("--json");
    let outcome = tool.run();
    outcome.assert_code(0);
    let printed: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(printed, tool.report());
}

#[test]
fn a_partition_that_is_not_there_is_refused_with_those_that_are() {
    let tool = Tool::new(untouched()).args(["plan", "--partition", "202405"]);
    let outcome = tool.run();
    outcome.assert_one_error(2, &["202405", "202406, 202407"]);
    assert_eq!(outcome.stdout, "");
    let nothing = Tool::new(untouched()).arg("plan").run();
    nothing.assert_one_error(2, &["--partition"]);
}

#[test]
fn a_partition_without_traces_is_planned_too() {
    let tool = Tool::new(untouched()).args(["plan", "--partition", "202407"]);
    let outcome = tool.run();
    outcome.assert_code(0);
    let forecast = tool.report();
    assert_eq!(forecast["observations"]["rows"], 1);
    assert_eq!(forecast["segments"], 1);
    // The month has no traces, and the day before it is taken for a thirtieth of a month that has.
    assert_eq!(forecast["traces"]["parts"], 0);
    assert!(seconds(&forecast["time"]["total_seconds"]) > 0.0);
    let load = step(&forecast, "load traces");
    assert_eq!(load["seconds"], 0.0);
    assert!(load["basis"].as_str().unwrap().contains("before and after"));
    assert_is_estimate(&line(&outcome, "Estimated time"));
}

#[test]
fn quiet_means_that_only_the_report_is_written() {
    let tool = Tool::new(untouched()).args(["plan", "--partition", SAMPLE_PARTITION, "--quiet"]);
    let outcome = tool.run();
    outcome.assert_code(0);
    assert_eq!((&*outcome.stdout, &*outcome.stderr), ("", ""));
    assert_eq!(tool.report()["segments"], 1);
}

// -------------------------------------------------------------------------------------------------
// How long it will take
// -------------------------------------------------------------------------------------------------

#[test]
fn time_is_estimated_from_a_sample_and_inserting_is_said_to_be_unmeasured() {
    let tool = plan(month());
    let outcome = tool.run();
    outcome.assert_code(0);
    let forecast = tool.report();
    // The sample is enough, and not the whole month.
    let rows = number(&forecast["observations"]["rows"]);
    let sample = &forecast["sample"];
    let read = number(&sample["read"]["rows"]);
    assert!(read > 10_000 && read < rows, "{read} of {rows}");
    let enriched = number(&sample["enrich"]["rows"]);
    assert!(enriched > 1_000 && enriched <= read, "{enriched} of {read}");
    assert!(number(&sample["load"]["rows"]) > 1_000);
    assert!(seconds(&sample["read"]["seconds"]) < 30.0);

    let load = seconds(&step(&forecast, "load traces")["seconds"]);
    let traces = number(&forecast["traces"]["rows"]) as f64;
    let loaded = number(&sample["load"]["rows"]) as f64;
    let expected = seconds(&sample["load"]["seconds"]) / loaded * traces;
    assert!((load / expected - 1.0).abs() < 0.001, "{load} {expected}");
    let read = seconds(&step(&forecast, "read and enrich")["seconds"]);
    let insert = step(&forecast, "insert");
    let basis = insert["basis"].as_str().unwrap();
    assert!(basis.contains("not measured"), "{basis}");
    let written = number(&forecast["write_bytes"]) as f64;
    assert!((seconds(&insert["seconds"]) * f64::from(120 << 20) / written - 1.0).abs() < 0.001);
    let total = load + read + seconds(&insert["seconds"]);
    let told = seconds(&forecast["time"]["total_seconds"]);
    assert!((told / total - 1.0).abs() < 0.001, "{told} {total}");
    assert_eq!(forecast["time"]["with_measured_inserts"], false);

    assert_is_estimate(&line(&outcome, "Estimated time"));
    assert!(line(&outcome, "  insert").contains("not measured"));
    assert!(outcome.stdout.contains("the time does not include"));
}

#[test]
fn events_of_the_sample_carry_what_their_traces_have() {
    let bytes_of = |more: &[&str]| {
        let tool = plan(month()).args(more.iter().copied());
        tool.run().assert_code(0);
        number(&tool.report()["write_bytes"])
    };
    // The traces' metadata is part of each event, if it is wanted.
    assert!(bytes_of(&[]) > bytes_of(&["--no-trace-metadata"]));
}

#[test]
fn what_an_earlier_run_measured_counts_before_a_sample() {
    let database = untouched();
    let earlier = small_month("earlier");
    let run = Tool::new(&earlier).args(["--partition", SAMPLE_PARTITION]);
    run.run().assert_code(0);
    // It was over in a moment, and went into another table.
    let plan = plan(database).arg("--state-dir").arg(run.state_dir());
    let outcome = plan.run();
    outcome.assert_code(0);
    assert_eq!(plan.report()["time"]["with_measured_inserts"], false);

    // As if it had taken longer, and had been here.
    let file = run.state_dir().join(SAMPLE_PARTITION).join("report.json");
    let mut report: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    report["partition"] = json!("202405");
    report["target_table"] = plan.report()["target_table"].clone();
    report["observations_per_second"] = json!(0.1);
    report["seconds"]["stream"] = json!(60.0);
    let other = run.state_dir().join("202405");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("report.json"), report.to_string()).unwrap();
    let outcome = plan.run();
    outcome.assert_code(0);
    let forecast = plan.report();
    assert_eq!(forecast["time"]["with_measured_inserts"], true);
    let step = step(&forecast, "read, enrich, insert");
    let rows = number(&forecast["observations"]["rows"]) as f64;
    assert!((seconds(&step["seconds"]) * 0.1 - rows).abs() < 0.001);
    let line = line(&outcome, "  read, enrich, insert");
    assert!(line.contains("speed of the run of 202405"), "{line}");
}

#[test]
fn the_sample_is_read_with_statements_that_the_run_sends_too() {
    let database = month();
    for (name, more) in [
        ("plain", &[][..]),
        ("without_dataset_items", &["--exclude-dataset-items"]),
        ("without_metadata", &["--no-trace-metadata"]),
    ] {
        database
            .query(&format!("CREATE TABLE {name} AS events_full"))
            .unwrap();
        let statements = |tool: Tool| -> BTreeSet<String> {
            let proxy = Proxy::start(database.server.http_port());
            let tool = tool
                .env("CLICKHOUSE_URL", proxy.url())
                .args(["--target-table", name])
                .args(more.iter().copied());
            tool.run().assert_code(0);
            let exchanges = proxy.exchanges(SEGMENT);
            exchanges
                .iter()
                .map(|exchange| exchange.sql.clone())
                .collect()
        };
        let planned = statements(plan(database));
        let sent = statements(tool(database));
        assert!(!planned.is_empty(), "{name}");
        assert!(planned.is_subset(&sent), "{name}\n{planned:#?}\n{sent:#?}");
    }
}

// -------------------------------------------------------------------------------------------------
// Signals
// -------------------------------------------------------------------------------------------------

#[test]
fn a_signal_ends_a_plan_at_once() {
    let database = untouched();
    for (statement, signal, code) in [
        ("mergeTreeIndex", 15, 143),
        (SEGMENT, 2, 130),
        ("system.parts_columns", 15, 143),
    ] {
        let proxy = Proxy::start(database.server.http_port());
        let stall = Action::Stall(FOREVER);
        let fault = proxy.arm(Fault::once(statement, Place::RequestByte(0), stall));
        let tool = plan(database).env("CLICKHOUSE_URL", proxy.url());
        let mut run = tool.spawn();
        let started = Instant::now();
        while fault.count() == 0 {
            assert!(run.is_running(), "{statement}");
            assert!(started.elapsed() < Duration::from_secs(60), "{statement}");
            thread::sleep(Duration::from_millis(10));
        }
        let asked = Instant::now();
        run.signal(signal);
        run.wait().assert_one_error(code, &["interrupted"]);
        assert!(asked.elapsed() < Duration::from_secs(5), "{statement}");
    }
}

#[test]
fn a_connection_that_breaks_does_not_end_a_plan() {
    let database = untouched();
    let proxy = Proxy::start(database.server.http_port());
    let cut = proxy.arm(Fault::once(
        SEGMENT,
        Place::ResponseBodyByte(10),
        Action::Cut,
    ));
    let tool = plan(database).env("CLICKHOUSE_URL", proxy.url());
    tool.run().assert_code(0);
    assert_eq!(cut.count(), 1);
    let sample = &tool.report()["sample"];
    assert_eq!(sample["enrich"]["rows"], sample["read"]["rows"]);
}

#[test]
fn a_plan_does_not_wait_for_ever_for_the_spans_of_dataset_runs() {
    let database = month();
    let proxy = Proxy::start(database.server.http_port());
    // The one that reads the spans of the traces that have an item.
    let stall = Action::Stall(FOREVER);
    let statement = "argMax(ifNull(o.parent_observation_id";
    let fault = proxy.arm(Fault::once(statement, Place::RequestByte(0), stall).always());
    let tool = plan(database)
        .arg("--experiments")
        .env("CLICKHOUSE_URL", proxy.url());
    let started = Instant::now();
    tool.run().assert_code(0);
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!(fault.count(), 1);
    let report = tool.report();
    assert_eq!(report["sample"]["experiments"]["is_cut_short"], true);
    let step = step(&report, "find dataset runs");
    let basis = step["basis"].as_str().unwrap();
    assert!(
        basis.starts_with("at least") && basis.contains("stopped after 15 s"),
        "{basis}"
    );
    assert!(seconds(&step["seconds"]) >= 15.0);
}

#[test]
fn root_spans_are_planned_beside_the_observations_or_on_their_own() {
    let database = month();
    let rows = number(&json!(of_parts("traces", "sum(rows)")));
    let plain = plan(database);
    plain.run().assert_code(0);
    let plain = plain.report();
    assert_eq!(plain["root_spans"], Value::Null);
    let both = plan(database).arg("--root-spans");
    both.run().assert_code(0);
    let both = both.report();
    assert_eq!(both["root_spans"]["rows"], rows);
    assert_eq!(both["segments"], plain["segments"]);
    assert_eq!(
        number(&both["write_bytes"]) > number(&plain["write_bytes"]),
        number(&both["root_spans"]["bytes"]["uncompressed"]) > 0,
    );
    assert!(
        number(&both["server_disk"]["needed_bytes"])
            > number(&plain["server_disk"]["needed_bytes"])
    );
    step(&both, "write root spans");
    let only = plan(database).args(["--only", "root-spans"]);
    let outcome = only.run();
    outcome.assert_code(0);
    assert!(line(&outcome, "Root spans").contains("segment"));
    let only = only.report();
    assert_eq!(only["segments"], 0);
    assert_eq!(only["time"]["steps"].as_array().unwrap().len(), 2);
    let tool = tool(database).args(["--only", "root-spans", "--dry-run"]);
    tool.run().assert_code(0);
    assert_eq!(
        tool.report()["segments_total"],
        only["root_spans"]["segments"]
    );
}

#[test]
fn the_plans_of_several_months_are_summed_up() {
    let database = small_month("plan_totals");
    let tool = Tool::new(&database).args(["plan", "--all-partitions"]);
    let outcome = tool.run();
    outcome.assert_code(0);
    let report = tool.report();
    let months = report["partitions"].as_array().unwrap();
    let rows: u64 = months
        .iter()
        .map(|month| number(&month["observations"]["rows"]))
        .sum();
    let (_, totals) = outcome.stdout.rsplit_once("All months ").unwrap();
    assert_eq!(
        totals.lines().next().unwrap().trim(),
        months.len().to_string()
    );
    assert!(totals.contains(&format!("{rows} rows")), "{totals}");
    let one = Tool::new(&database).args(["plan", "--partition", SAMPLE_PARTITION]);
    assert!(!one.run().stdout.contains("All months"));
}

#[test]
fn what_applies_to_all_months_of_a_plan_is_said_once_at_the_end() {
    let database = small_month("plan_notes");
    let tool = Tool::new(&database).args(["plan", "--all-partitions"]);
    let run = Tool::new(&database)
        .args(["--partition", "202407"])
        .env("STATE_DIR", tool.state_dir());
    run.run().assert_code(0);
    let outcome = tool.run();
    outcome.assert_code(0);
    let (months, end) = outcome.stdout.rsplit_once("All months ").unwrap();
    let report = tool.report();
    let months_of_report = report["partitions"].as_array().unwrap();
    assert!(months_of_report.len() > 1);
    let notes = |month: &Value| -> BTreeSet<String> {
        let notes = month["notes"].as_array().unwrap().iter();
        notes
            .map(|note| note.as_str().unwrap().to_owned())
            .collect()
    };
    let all = months_of_report.iter().map(notes);
    let shared = all.reduce(|all, some| &all & &some).unwrap();
    assert!(shared.len() >= 3, "{shared:?}");
    for note in shared {
        let line = format!("\nnote: {note}\n");
        assert!(!months.contains(&note), "{note}\n{}", outcome.stdout);
        assert_eq!(end.matches(&line).count(), 1, "{note}\n{end}");
    }
    // What is about one month alone stays with it.
    assert_eq!(months.matches("says this partition is finished").count(), 1);
    assert!(!end.contains("says this partition is finished"), "{end}");
    // A single month says all of it.
    let one = Tool::new(&database).args(["plan", "--partition", "202406"]);
    assert!(
        one.run()
            .stdout
            .contains("\nnote: row counts come from parts")
    );
    let all_of_one = tool_of_one_month("plan_notes_of_one");
    let said = all_of_one.stdout;
    assert_eq!(
        said.matches("\nnote: row counts come from").count(),
        1,
        "{said}"
    );
    assert!(!said.contains("All months"), "{said}");
}

/// A plan of all months where there is one.
fn tool_of_one_month(name: &str) -> Outcome {
    let database = small_month(name);
    let later = "ALTER TABLE observations DROP PARTITION 202407";
    database.query(later).unwrap();
    let outcome = Tool::new(&database)
        .args(["plan", "--all-partitions"])
        .run();
    outcome.assert_code(0);
    outcome
}

#[test]
fn larger_segments_than_asked_for_are_said_with_the_reason() {
    let database = Server::shared().sample_month("plan_raised", 5_000);
    let asked = |rows: &str| {
        let arguments = ["--partition", SAMPLE_PARTITION, "--segment-rows", rows];
        let plan = Tool::new(&database).arg("plan").args(arguments);
        let run = Tool::new(&database).args(arguments).arg("--dry-run");
        (plan.run(), run.run())
    };
    let words = "--segment-rows raised from 1,000 to ";
    let (plan, run) = asked("1000");
    for (said, place) in [(&plan.stdout, "note: "), (&run.stderr, "")] {
        let line = said.lines().find(|line| line.contains(words));
        let line = line.unwrap_or_else(|| panic!("{said}"));
        assert!(line.starts_with(&format!("{place}{words}")), "{line}");
        assert!(line.contains(" for observations ("), "{line}");
        assert!(line.ends_with("would read many rows twice"), "{line}");
    }
    assert_eq!(run.stderr.matches(words).count(), 1, "{}", run.stderr);
    // One segment has them all, however many parts there are.
    let (plan, run) = asked("50000");
    for outcome in [plan, run] {
        outcome.assert_code(0);
        let said = outcome.stdout + &outcome.stderr;
        assert!(!said.contains("--segment-rows raised from"), "{said}");
    }
}
