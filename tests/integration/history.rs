//! A history of three months, with everything that there is to write, through interruptions, and
//! proven afterwards.

use crate::support::differential::{
    Specification, add_experiments, ask_number, assert_equal, execute,
};
use crate::support::{Database, Server, Tool};

const MONTHS: [(&str, &str); 3] = [
    ("202404", "2024-04-01"),
    ("202405", "2024-05-01"),
    ("202406", "2024-06-01"),
];
const OBSERVATIONS_PER_MONTH: u64 = 15_000;

/// Three months. Some traces have observations in the months after, and some moved there.
fn history(name: &str) -> Database<'static> {
    let database = Server::shared().database(name);
    database.load_schema();
    for (_, first_day) in MONTHS {
        database.load_month(first_day, OBSERVATIONS_PER_MONTH);
    }
    for table_and_change in [
        "observations SELECT * REPLACE (concat(t.id, ' later') AS id, \
             addDays(t.start_time, 30) AS start_time) \
         FROM observations AS t FINAL WHERE toYYYYMM(t.start_time) < 202406 \
             AND cityHash64(t.id) % 10 = 0",
        "traces SELECT * REPLACE (addDays(t.timestamp, 30) AS timestamp, \
             concat(t.name, ' moved') AS name, t.event_ts + INTERVAL 1 HOUR AS event_ts) \
         FROM traces AS t FINAL WHERE toYYYYMM(t.timestamp) < 202406 \
             AND cityHash64(t.id) % 20 = 0",
    ] {
        execute(&database, &format!("INSERT INTO {table_and_change}"));
    }
    database
}

/// Fills the table `expected` for a run with root spans and experiments over all months.
fn expect(database: &Database) {
    for (number, (partition, _)) in MONTHS.iter().enumerate() {
        match number {
            0 => Specification::current().fill(database, partition, "events_full", "expected"),
            _ => Specification::current().add(database, partition, "expected"),
        }
        Specification::of_root_spans().add(database, partition, "expected");
    }
    add_experiments(database, "expected");
    for (what, least) in [
        ("1", 45_000),
        ("span_id LIKE '% later' AND user_id != ''", 500),
        ("trace_name LIKE '% moved'", 500),
        ("experiment_id != ''", 300),
        ("span_id = concat('t-', trace_id)", 5_000),
    ] {
        let rows = ask_number(
            database,
            &format!("SELECT count() FROM expected WHERE {what}"),
        );
        assert!(rows >= least, "{rows} events with {what}");
    }
}

#[test]
fn a_history_is_complete_after_any_interruption_and_is_proven() {
    let database = history("history");
    expect(&database);
    let tool = Tool::new(&database).args([
        "--all-partitions",
        "--root-spans",
        "--experiments",
        "--segment-rows",
        "2000",
        "--batch-size",
        "2000",
    ]);
    let newest = tool.state_dir().join("202406").join("checkpoint");
    let tool = tool.run_with_kills(15, &newest);
    let report = tool.report();
    assert_eq!(
        report["partitions"].as_array().map(Vec::len),
        Some(3),
        "{report}"
    );
    execute(&database, "OPTIMIZE TABLE events_full FINAL");
    assert_equal(&database, "expected", "events_full");

    let verify = || {
        Tool::new(&database)
            .args(["verify", "--all-partitions", "--root-spans"])
            // It has none.
            .env("STATE_DIR", "nowhere")
    };
    verify().run().assert_code(0);
    // One byte in one row of the oldest month.
    execute(
        &database,
        "INSERT INTO events_full SELECT * REPLACE (concat(e.output, ' ') AS output) \
         FROM events_full AS e FINAL WHERE e._partition_id = '202404' AND e.span_id LIKE 't-%' LIMIT 1",
    );
    let outcome = verify().run();
    outcome.assert_code(1);
    assert!(outcome.stdout.contains("output"), "{}", outcome.stdout);
}
