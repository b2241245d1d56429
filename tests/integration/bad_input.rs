//! Whatever is wrong with what the operator gave: one clear sentence that says what, where and what
//! to do, the exit code that the help promises, and nothing written to the target.
//!
//! Everything goes through the real program and, as far as the mistake lets it, to a real server.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Database, Outcome, Running, Server, TESTER, Tool, small_month, untouched};

/// Exit code of mistakes that are found before the work begins.
const CONFIGURATION: i32 = 2;

/// Exit code of work that could not be finished.
const FAILED: i32 = 1;

/// The columns that every events table must have, with types that can be filled.
const LEAST_EVENT_COLUMNS: &[(&str, &str)] = &[
    ("project_id", "String"),
    ("trace_id", "String"),
    ("span_id", "String"),
    ("parent_span_id", "String"),
    ("start_time", "DateTime64(6)"),
    ("name", "String"),
    ("type", "LowCardinality(String)"),
    ("input", "String"),
    ("metadata_names", "Array(String)"),
    ("metadata_values", "Array(String)"),
    ("event_ts", "DateTime64(6)"),
    ("is_deleted", "UInt8"),
];

/// The program with a partition that can be backfilled.
fn june(database: &Database) -> Tool {
    Tool::new(database).args(["--partition", "202406"])
}

/// The program is refused by its own checks, so that its sentence is all there is to read.
#[track_caller]
fn assert_refused(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_one_sentence(outcome, code, words);
    let last = outcome.stderr.trim_end().lines().last().unwrap_or_default();
    assert!(
        last.starts_with("error: "),
        "the error must be one line, and the last one\n{}",
        outcome.stderr
    );
}

/// As [`assert_refused`], where more lines may follow.
#[track_caller]
fn assert_one_sentence(outcome: &Outcome, code: i32, words: &[&str]) {
    outcome.assert_code(code);
    for word in words {
        outcome.assert_stderr_contains(word);
    }
    let errors = outcome
        .stderr
        .lines()
        .filter(|line| line.starts_with("error: "));
    assert_eq!(errors.count(), 1, "one error\n{}", outcome.stderr);
    for trace_of_a_crash in ["panicked", "RUST_BACKTRACE", "stack backtrace", "src/"] {
        assert!(
            !outcome.stderr.contains(trace_of_a_crash),
            "{trace_of_a_crash:?} is nothing for an operator\n{}",
            outcome.stderr
        );
    }
}

/// Not one row is in the table.
#[track_caller]
fn assert_empty(database: &Database, table: &str) {
    assert_eq!(
        database.query(&format!("SELECT count() FROM `{table}`")),
        Ok("0\n".to_owned())
    );
}

/// Runs the program and checks that it is refused and has written nothing to `events_full`.
#[track_caller]
fn refuses(database: &Database, tool: &Tool, words: &[&str]) -> Outcome {
    let outcome = tool.run();
    assert_refused(&outcome, CONFIGURATION, words);
    assert_empty(database, "events_full");
    outcome
}

// -------------------------------------------------------------------------------------------------
// The month
// -------------------------------------------------------------------------------------------------

#[test]
fn a_partition_that_is_not_a_month_is_refused() {
    for partition in ["2024-06", "20240", "2024061", "junk42", "é2024", "+20246"] {
        let tool = Tool::new(untouched()).args(["--partition", partition]);
        refuses(untouched(), &tool, &[partition, "YYYYMM", "202406"]);
    }
}

#[test]
fn a_month_that_the_calendar_does_not_have_is_refused() {
    for (partition, word) in [
        ("202413", "no month 13"),
        ("202400", "no month 00"),
        ("196912", "from 1970"),
    ] {
        let tool = Tool::new(untouched()).args(["--partition", partition]);
        refuses(untouched(), &tool, &[partition, word]);
    }
}

#[test]
fn a_missing_partition_is_asked_for() {
    refuses(
        untouched(),
        &Tool::new(untouched()),
        &["month", "--partition", "YYYYMM"],
    );
}

#[test]
fn a_partition_that_is_not_there_is_told_with_those_that_are() {
    let tool = Tool::new(untouched()).args(["--partition", "202405"]);
    refuses(
        untouched(),
        &tool,
        &["observations", "no partition 202405", "202406, 202407"],
    );
}

#[test]
fn an_empty_table_of_observations_is_told() {
    let database = Server::shared().database("empty");
    database.load_schema();
    refuses(
        &database,
        &june(&database),
        &["no partition 202406", "empty"],
    );
}

// -------------------------------------------------------------------------------------------------
// The server
// -------------------------------------------------------------------------------------------------

/// The address of a listener that does the same with every connection, until the tests end.
fn listener(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
    let address = listener.local_addr().expect("it is bound");
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let serve = std::sync::Arc::clone(&serve);
            thread::spawn(move || serve(connection));
        }
    });
    format!("http://{address}")
}

/// A web server that answers everything with the same page.
fn web_server(status: &'static str) -> String {
    listener(move |mut connection| {
        // Reads what there is before it answers: closing with unread bytes would be a reset.
        let _ = connection.set_read_timeout(Some(Duration::from_millis(200)));
        let mut buffer = [0; 65_536];
        while connection.read(&mut buffer).is_ok_and(|length| length > 0) {}
        let page = "<!DOCTYPE html>\n<html><head><title>Welcome to nginx!</title></head>\n\
                    <body><h1>Welcome to nginx!</h1></body></html>\n";
        let _ = write!(
            connection,
            "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{page}",
            page.len()
        );
    })
}

/// Waits for the end of a run, but no longer than so.
fn wait_at_most(mut running: Running, limit: Duration) -> Option<Outcome> {
    let started = Instant::now();
    while running.is_running() {
        if started.elapsed() > limit {
            return None;
        }
        thread::sleep(Duration::from_millis(20));
    }
    Some(running.wait())
}

#[test]
fn a_server_that_is_not_there_is_told_with_its_address() {
    let nobody = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
        listener.local_addr().expect("it is bound").to_string()
    };
    let tool = june(untouched()).env("CLICKHOUSE_URL", format!("http://{nobody}"));
    let outcome = tool.run();
    assert_refused(
        &outcome,
        CONFIGURATION,
        &[&nobody, "cannot be reached", "CLICKHOUSE_URL"],
    );
    assert!(outcome.duration < Duration::from_secs(15));
}

#[test]
fn a_host_that_has_no_address_is_told() {
    let tool = june(untouched()).env("CLICKHOUSE_URL", "http://no-such-host.invalid:8123");
    assert_refused(
        &tool.run(),
        CONFIGURATION,
        &[
            "no-such-host.invalid",
            "cannot be reached",
            "CLICKHOUSE_URL",
        ],
    );
}

#[test]
fn a_web_page_in_place_of_clickhouse_is_told() {
    for status in ["200 OK", "404 Not Found", "502 Bad Gateway"] {
        let address = web_server(status);
        let tool = june(untouched()).env("CLICKHOUSE_URL", &address);
        assert_refused(
            &tool.run(),
            CONFIGURATION,
            &[&address, "other than ClickHouse", "CLICKHOUSE_URL"],
        );
    }
}

#[test]
fn no_http_status_is_told_that_was_not_answered() {
    let address = web_server("200 OK");
    let outcome = june(untouched()).env("CLICKHOUSE_URL", &address).run();
    assert!(!outcome.stderr.contains("500"), "{}", outcome.stderr);
}

#[test]
fn a_port_that_closes_every_connection_is_told() {
    let address = listener(drop);
    let tool = june(untouched()).env("CLICKHOUSE_URL", &address);
    assert_refused(
        &tool.run(),
        CONFIGURATION,
        &[&address, "cannot be reached", "CLICKHOUSE_URL"],
    );
}

#[test]
fn a_port_that_speaks_something_else_is_told() {
    // As a mail server does: it speaks first, and not HTTP.
    let address = listener(|mut connection| {
        let _ = connection.write_all(b"220 mail.example.org ESMTP\r\n");
        let mut buffer = [0; 1024];
        let _ = connection.set_read_timeout(Some(Duration::from_millis(500)));
        while connection.read(&mut buffer).is_ok_and(|length| length > 0) {}
    });
    let tool = june(untouched()).env("CLICKHOUSE_URL", &address);
    assert_refused(
        &tool.run(),
        CONFIGURATION,
        &[&address, "CLICKHOUSE_URL", "HTTP"],
    );
}

#[test]
fn the_native_port_in_place_of_the_http_port_is_told() {
    // The commonest mistake of all: 9000 in place of 8123.
    let address = format!("http://127.0.0.1:{}", Server::shared().tcp_port());
    let tool = june(untouched()).env("CLICKHOUSE_URL", &address);
    assert_refused(
        &tool.run(),
        CONFIGURATION,
        &[&address, "CLICKHOUSE_URL", "HTTP"],
    );
}

#[test]
fn tls_to_a_port_without_tls_is_told() {
    let address = format!("https://127.0.0.1:{}", Server::shared().http_port());
    let tool = june(untouched()).env("CLICKHOUSE_URL", &address);
    assert_refused(&tool.run(), CONFIGURATION, &["https://127.0.0.1"]);
}

#[test]
fn a_port_that_never_answers_does_not_hold_the_operator_up_for_minutes() {
    // It takes the connection, and the request, and says nothing.
    let address = listener(|mut connection| {
        let mut buffer = [0; 1024];
        while connection.read(&mut buffer).is_ok_and(|length| length > 0) {}
    });
    let tool = june(untouched()).env("CLICKHOUSE_URL", &address);
    let limit = Duration::from_secs(45);
    let outcome = wait_at_most(tool.spawn(), limit)
        .unwrap_or_else(|| panic!("the program still waits for its first answer after {limit:?}"));
    assert_refused(&outcome, CONFIGURATION, &[&address, "CLICKHOUSE_URL"]);
}

#[test]
fn an_address_that_is_none_is_refused_without_repeating_credentials() {
    for (address, words) in [
        ("localhost:8123", &["CLICKHOUSE_URL"][..]),
        ("tcp://localhost:9000", &["CLICKHOUSE_URL", "HTTP"]),
        ("http://", &["CLICKHOUSE_URL"]),
        (
            "http://me:topsecret@localhost:8123",
            &["CLICKHOUSE_URL", "CLICKHOUSE_PASSWORD"],
        ),
        (
            "http://localhost:8123/?user=me&password=topsecret",
            &["CLICKHOUSE_URL", "CLICKHOUSE_PASSWORD"],
        ),
        ("http://me:topsecret@local host", &["CLICKHOUSE_URL"]),
    ] {
        let outcome = june(untouched()).env("CLICKHOUSE_URL", address).run();
        assert_refused(&outcome, CONFIGURATION, words);
        assert!(!outcome.stderr.contains("topsecret"), "{}", outcome.stderr);
    }
}

#[test]
fn a_wrong_password_and_an_unknown_user_are_told() {
    for (user, password) in [(TESTER.0, "wrong"), (TESTER.0, ""), ("nobody", "wrong")] {
        let tool = june(untouched())
            .env("CLICKHOUSE_USER", user)
            .env("CLICKHOUSE_PASSWORD", password);
        refuses(
            untouched(),
            &tool,
            &[user, "CLICKHOUSE_USER", "CLICKHOUSE_PASSWORD"],
        );
    }
}

// -------------------------------------------------------------------------------------------------
// Database, tables, columns
// -------------------------------------------------------------------------------------------------

#[test]
fn a_missing_database_is_told() {
    let tool = june(untouched()).env("CLICKHOUSE_DB", "lang'fuse");
    assert_refused(
        &tool.run(),
        CONFIGURATION,
        &["no database 'lang'fuse'", "CLICKHOUSE_DB"],
    );
}

#[test]
fn a_missing_source_table_is_told() {
    for table in ["traces", "observations"] {
        let database = small_month("no_source");
        database.query(&format!("DROP TABLE {table}")).unwrap();
        let words = [
            &*format!("no table {table}"),
            &database.name,
            "CLICKHOUSE_DB",
        ];
        refuses(&database, &june(&database), &words);
    }
}

#[test]
fn a_missing_target_table_is_told() {
    let database = small_month("no_target");
    let tool = june(&database).args(["--target-table", "evnts"]);
    refuses(&database, &tool, &["no table evnts", &database.name]);

    // The views on it go first, or they would keep it from being dropped.
    let dropped = "SELECT name FROM system.tables WHERE database = currentDatabase() \
                   AND (name LIKE 'events%' OR engine = 'MaterializedView') \
                   ORDER BY engine = 'MaterializedView' DESC";
    for table in database.query(dropped).unwrap().lines() {
        database.query(&format!("DROP TABLE `{table}`")).unwrap();
    }
    let outcome = june(&database).run();
    assert_refused(
        &outcome,
        CONFIGURATION,
        &["events_full", "events", &database.name, "--target-table"],
    );
}

#[test]
fn a_missing_source_column_is_told() {
    for (table, column) in [
        ("observations", "parent_observation_id"),
        ("observations", "cost_details"),
        ("observations", "metadata"),
        ("observations", "version"),
        ("observations", "trace_id"),
        ("traces", "user_id"),
        ("traces", "tags"),
        ("traces", "metadata"),
    ] {
        let database = small_month("no_column");
        // A column cannot go while an index is made of it.
        let indexes = database
            .query(&format!(
                "SELECT name FROM system.data_skipping_indices \
                 WHERE database = currentDatabase() AND table = '{table}'"
            ))
            .unwrap();
        for index in indexes.lines() {
            database
                .query(&format!("ALTER TABLE {table} DROP INDEX {index}"))
                .unwrap();
        }
        database
            .query(&format!("ALTER TABLE {table} DROP COLUMN {column}"))
            .unwrap();
        let words = [
            &*format!("{}.{table}", database.name),
            &*format!("no column {column}"),
            "migrations",
        ];
        refuses(&database, &june(&database), &words);
    }
}

/// Makes a target that has the least columns of an events table, one of them changed or left out.
fn make_target(database: &Database, column: &str, data_type: Option<&str>) {
    let mut columns: Vec<String> = LEAST_EVENT_COLUMNS
        .iter()
        .filter(|(name, _)| *name != column)
        .map(|(name, data_type)| format!("`{name}` {data_type}"))
        .collect();
    if let Some(data_type) = data_type {
        columns.push(format!("`{column}` {data_type}"));
    }
    let key = match column {
        "span_id" => "trace_id",
        _ => "span_id",
    };
    database.query("DROP TABLE IF EXISTS target").unwrap();
    database
        .query(&format!(
            "CREATE TABLE target ({}) ENGINE = ReplacingMergeTree ORDER BY {key}",
            columns.join(", ")
        ))
        .unwrap();
}

#[test]
fn a_missing_target_column_is_told() {
    let database = small_month("no_target_column");
    let tool = june(&database).args(["--target-table", "target"]);
    for column in [
        "project_id",
        "trace_id",
        "span_id",
        "parent_span_id",
        "start_time",
        "name",
        "type",
        "event_ts",
        "is_deleted",
    ] {
        make_target(&database, column, None);
        let words = [
            &*format!("{}.target", database.name),
            &*format!("no column {column}"),
        ];
        assert_refused(&tool.run(), CONFIGURATION, &words);
        assert_empty(&database, "target");
    }
}

#[test]
fn half_of_the_metadata_arrays_is_not_enough() {
    // Names without values, or the reverse, are pairs that cannot be put together again.
    let database = small_month("half_metadata");
    let tool = june(&database).args(["--target-table", "target"]);
    for column in ["metadata_names", "metadata_values"] {
        make_target(&database, column, None);
        assert_refused(
            &tool.run(),
            CONFIGURATION,
            &[&format!("no column {column}"), "target"],
        );
        assert_empty(&database, "target");
    }
}

#[test]
fn a_table_that_holds_no_events_is_no_target() {
    for table in ["observations", "traces"] {
        let tool = june(untouched()).args(["--target-table", table]);
        refuses(
            untouched(),
            &tool,
            &[table, "no column", "which every event needs"],
        );
    }
}

#[test]
fn a_target_column_of_a_type_that_cannot_be_sent_is_told_with_its_type() {
    let database = small_month("odd_target");
    for (column, data_type) in [
        ("input", "Variant(String, UInt64)"),
        ("input", "Dynamic"),
        ("name", "AggregateFunction(any, String)"),
    ] {
        refuses_target_column(&database, column, data_type);
    }
}

#[test]
fn a_target_column_that_enriching_fills_has_its_type_checked_too() {
    let database = small_month("odd_enriched_target");
    for (column, data_type) in [
        ("user_id", "AggregateFunction(any, String)"),
        ("tags", "AggregateFunction(any, String)"),
    ] {
        refuses_target_column(&database, column, data_type);
    }
}

#[track_caller]
fn refuses_target_column(database: &Database, column: &str, data_type: &str) {
    make_target(database, column, Some(data_type));
    let tool = june(database)
        .args(["--target-table", "target"])
        // Should the server have to find it, then without waiting for it to pass.
        .env("MAX_RETRIES", "0");
    let type_name = data_type.split('(').next().unwrap_or_default();
    let words = [&*format!("column {column}"), "target", type_name];
    assert_refused(&tool.run(), CONFIGURATION, &words);
    assert_empty(database, "target");
}

#[test]
fn a_source_column_that_the_server_cannot_convert_is_told() {
    for (table, column, data_type) in [
        ("observations", "usage_details", "Array(String)"),
        ("traces", "tags", "UInt64"),
    ] {
        let database = small_month("odd_source");
        for change in [
            format!("DROP COLUMN {column}"),
            format!("ADD COLUMN {column} {data_type}"),
        ] {
            database
                .query(&format!("ALTER TABLE {table} {change}"))
                .unwrap();
        }
        let outcome = june(&database).env("MAX_RETRIES", "0").run();
        // The server may be the one who finds it, and then the work has begun.
        let code = outcome.code.unwrap_or_default();
        assert!([CONFIGURATION, FAILED].contains(&code), "{code}");
        assert_refused(&outcome, code, &[data_type, column]);
        assert_empty(&database, "events_full");
    }
}

#[test]
fn traces_that_cannot_be_loaded_are_told_with_their_day_as_people_write_it() {
    let database = small_month("unreadable_traces");
    for change in ["DROP COLUMN tags", "ADD COLUMN tags UInt64"] {
        database
            .query(&format!("ALTER TABLE traces {change}"))
            .unwrap();
    }
    let outcome = june(&database).env("MAX_RETRIES", "0").run();
    // Nobody counts days since 1970. Which type was wrong may be found before any day is read.
    if outcome.code == Some(FAILED) {
        outcome.assert_stderr_contains("2024-06-0");
    }
}

#[test]
fn names_of_any_form_are_no_bad_input() {
    // What looks like a mistake, a placeholder or an attack is only a name.
    let odd = "odd `tick` 'quote' \"double\" \\ ? ?? ?fields {x:String} % ünï 東京 -- ;";
    let quoted = "`odd \\`tick\\` 'quote' \"double\" \\\\ ? ?? ?fields {x:String} % ünï 東京 -- ;`";
    let database = small_month("odd_names");
    make_target(&database, "irrelevant", None);
    for statement in [
        format!("RENAME TABLE target TO {quoted}"),
        format!("ALTER TABLE {quoted} ADD COLUMN {quoted} String DEFAULT 'left alone'"),
    ] {
        database
            .query(&statement)
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    let tool = june(&database).args(["--target-table", odd]);
    tool.run().assert_code(0);
    let count = "SELECT count(), countIf(COLUMNS('^odd') = 'left alone') FROM ";
    assert_eq!(
        database.query(&format!("{count}{quoted}")),
        Ok("6\t6\n".to_owned())
    );

    // A database of that name, too.
    let server = Server::shared();
    let odd_database = format!("?odd {}", database.name);
    server
        .query(&format!("CREATE DATABASE `{odd_database}`"))
        .unwrap();
    for table in ["traces", "observations", "events_full"] {
        server
            .query(&format!(
                "CREATE TABLE `{odd_database}`.{table} AS `{0}`.{table}",
                database.name
            ))
            .unwrap();
        server
            .query(&format!(
                "INSERT INTO `{odd_database}`.{table} SELECT * FROM `{0}`.{table}",
                database.name
            ))
            .unwrap();
    }
    let tool = june(&database).env("CLICKHOUSE_DB", &odd_database);
    tool.run().assert_code(0);
    assert_eq!(
        server.query(&format!("SELECT count() FROM `{odd_database}`.events_full")),
        Ok("6\n".to_owned())
    );
}

// -------------------------------------------------------------------------------------------------
// Engines and keys
// -------------------------------------------------------------------------------------------------

#[test]
fn a_target_that_keeps_duplicates_needs_a_word_of_the_operator() {
    let database = small_month("duplicates");
    let columns: Vec<String> = LEAST_EVENT_COLUMNS
        .iter()
        .map(|(name, data_type)| format!("{name} {data_type}"))
        .collect();
    database
        .query(&format!(
            "CREATE TABLE plain ({}) ENGINE = MergeTree ORDER BY span_id",
            columns.join(", ")
        ))
        .unwrap();
    let tool = june(&database).args(["--target-table", "plain"]);
    assert_refused(
        &tool.run(),
        CONFIGURATION,
        &[
            "plain",
            "MergeTree",
            "not a ReplacingMergeTree",
            "duplicate",
            "--allow-duplicates",
        ],
    );
    assert_empty(&database, "plain");

    let tool = tool.arg("--allow-duplicates");
    tool.run().assert_code(0);
    tool.arg("--restart").run().assert_code(0);
    // What the refusal said comes true.
    assert_eq!(
        database.query("SELECT count(), uniqExact(span_id) FROM plain"),
        Ok("12\t6\n".to_owned())
    );
}

#[test]
fn a_view_is_no_target() {
    let database = small_month("view");
    database
        .query("CREATE VIEW looks_like_it AS SELECT * FROM events_full")
        .unwrap();
    let tool = june(&database).args(["--target-table", "looks_like_it"]);
    refuses(&database, &tool, &["looks_like_it", "View"]);
}

#[test]
fn the_table_that_a_view_fills_is_no_target() {
    // events_core gets its rows, shortened, from events_full. Rows written to it directly would be
    // missing where the prompts are, and be there twice after the real backfill.
    let database = small_month("core");
    let tool = june(&database).args(["--target-table", "events_core"]);
    assert_refused(&tool.run(), CONFIGURATION, &["events_core", "events_full"]);
    assert_empty(&database, "events_core");
}

#[test]
fn a_source_whose_versions_cannot_be_told_apart_is_refused() {
    for (table, key, time) in [
        (
            "observations",
            "project_id, type, toDate(start_time)",
            "start_time",
        ),
        ("traces", "project_id, toDate(timestamp)", "timestamp"),
    ] {
        let database = small_month("plain_source");
        replace_table(
            &database,
            table,
            &format!(
                "MergeTree PARTITION BY toYYYYMM({time}) PRIMARY KEY ({key}) ORDER BY ({key}, id)"
            ),
        );
        let words = [
            &*format!("{}.{table}", database.name),
            "MergeTree",
            "not a ReplacingMergeTree",
        ];
        refuses(&database, &june(&database), &words);
    }
}

#[test]
fn a_source_that_is_not_partitioned_by_month_is_refused() {
    for (table, time) in [("observations", "start_time"), ("traces", "timestamp")] {
        for key in [format!("toYYYYMMDD({time})"), "tuple()".to_owned()] {
            let database = small_month("other_partitions");
            replace_table(
                &database,
                table,
                &format!(
                    "ReplacingMergeTree(event_ts, is_deleted) PARTITION BY {key} \
                     ORDER BY (project_id, toDate({time}), id)"
                ),
            );
            let words = [
                &*format!("{}.{table}", database.name),
                "partitioned by",
                "month",
                &*format!("toYYYYMM({time})"),
            ];
            refuses(&database, &june(&database), &words);
        }
    }
}

/// Puts a table with the same columns and rows but another engine in a table's place.
fn replace_table(database: &Database, table: &str, engine: &str) {
    for statement in [
        format!("RENAME TABLE {table} TO original"),
        format!("CREATE TABLE {table} ENGINE = {engine} AS SELECT * FROM original"),
    ] {
        database
            .query(&statement)
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

#[test]
fn dataset_items_cannot_be_left_out_where_nothing_says_which_they_are() {
    let database = small_month("no_dataset_items");
    database.query("DROP TABLE dataset_run_items_rmt").unwrap();
    let tool = june(&database).arg("--exclude-dataset-items");
    refuses(
        &database,
        &tool,
        &[
            "--exclude-dataset-items",
            "dataset_run_items_rmt",
            &database.name,
        ],
    );
    // Who does not ask for it does not need the table.
    june(&database).run().assert_code(0);
}

// -------------------------------------------------------------------------------------------------
// The disk
// -------------------------------------------------------------------------------------------------

#[test]
fn a_state_directory_that_cannot_be_made_is_told() {
    let tool = june(untouched());
    let file = tool.directory().join("file");
    fs::write(&file, "not a directory").unwrap();
    // Permissions do not stop root, but nobody can make a directory below a file.
    for directory in [file.clone(), file.join("state")] {
        let path = directory.display().to_string();
        let tool = june(untouched()).args(["--state-dir", &path]);
        refuses(
            untouched(),
            &tool,
            &["state directory", &path, "--state-dir"],
        );
    }
}

/// Runs the program with `june` of a database and a file system of its own, mounted with these
/// options, for its state. The mount is in a namespace of its own, so it goes away by itself and
/// needs no right but that of making such a namespace. Where that is not allowed: none.
fn run_on_file_system(database: &Database, options: &str) -> Option<Outcome> {
    let directory = tempfile::tempdir().unwrap();
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command
            .args(["--map-root-user", "--mount", "sh", "-c", script])
            .arg(directory.path())
            .arg(options)
            .stdin(Stdio::null());
        command
    };
    let mount = "mount -t tmpfs -o \"$1\" tmpfs \"$0\"";
    let rehearsal = unshare(mount).output();
    if !rehearsal
        .as_ref()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("skipped: a file system cannot be mounted here: {rehearsal:?}");
        return None;
    }
    let started = Instant::now();
    let output = unshare(&format!("{mount} && shift && exec \"$@\""))
        .arg(env!("CARGO_BIN_EXE_events-backfill"))
        .args(["--partition", "202406", "--state-dir"])
        .arg(directory.path())
        .current_dir(directory.path())
        .env("CLICKHOUSE_URL", database.server.url())
        .env("CLICKHOUSE_DB", &database.name)
        .output()
        .unwrap();
    Some(Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        duration: started.elapsed(),
    })
}

#[test]
fn a_state_directory_that_is_read_only_is_told() {
    if let Some(outcome) = run_on_file_system(untouched(), "ro") {
        assert_refused(
            &outcome,
            CONFIGURATION,
            &["state directory", "Read-only", "--state-dir"],
        );
        assert_empty(untouched(), "events_full");
    }
}

/// Some 40 MB of traces, in which only the ids and the random texts differ.
fn load_many_traces(database: &Database, text: &str) {
    database
        .query(&format!(
            "INSERT INTO traces (id, project_id, timestamp, event_ts, user_id, metadata) \
             SELECT toString(generateUUIDv4()), 'project', '2024-06-10 00:00:00', now(), \
             toString(generateUUIDv4()), map('key', {text}) FROM numbers(40000)"
        ))
        .unwrap();
}

#[test]
fn too_little_disk_for_the_store_is_told_before_anything_is_loaded() {
    let database = small_month("disk");
    load_many_traces(&database, "randomPrintableASCII(900)");
    if let Some(outcome) = run_on_file_system(&database, "size=8m") {
        assert_refused(
            &outcome,
            CONFIGURATION,
            &["traces", "MiB", "disk", "--state-dir"],
        );
        assert!(!outcome.stderr.contains("traces loaded"));
        assert_empty(&database, "events_full");
    }
    // Where there is room, the same goes through. So the refusal was for the disk alone.
    june(&database).run().assert_code(0);
}

#[test]
fn a_disk_that_would_be_full_in_the_end_is_refused_in_the_beginning() {
    // The estimate is of use only if no disk passes that turns out to be too small. Ids and user
    // ids do not compress, texts do or do not.
    let mut wrong = Vec::new();
    for text in [
        "randomPrintableASCII(900)",
        "concat('{\"service.name\":\"assistant\",\"telemetry.sdk.language\":\"python\"}', \
         toString(number))",
        "''",
    ] {
        let database = small_month("estimate");
        load_many_traces(&database, text);
        let tool = june(&database).arg("--dry-run");
        tool.run().assert_code(0);
        let store = tool.report()["store_bytes"].as_u64().unwrap();
        let size = format!("size={}", store * 9 / 10);
        if let Some(outcome) = run_on_file_system(&database, &size)
            && (outcome.code != Some(CONFIGURATION) || !outcome.stderr.contains("--state-dir"))
        {
            let last = outcome.stderr.lines().last().unwrap_or_default();
            wrong.push(format!(
                "traces with {text}: the store takes {store} bytes, and a disk with {size} was \
                 not refused: {last}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_report_that_cannot_be_written_is_told_before_the_work_not_after() {
    let database = small_month("report");
    let tool = june(&database).args(["--report", "/no/such/directory/report.json"]);
    refuses(&database, &tool, &["/no/such/directory/report.json"]);
}

// -------------------------------------------------------------------------------------------------
// Settings
// -------------------------------------------------------------------------------------------------

#[test]
fn a_broken_env_file_is_told_without_repeating_it() {
    for content in [
        &b"PARTITION=202406\nCLICKHOUSE_PASSWORD=top secret # words\n"[..],
        b"CLICKHOUSE_PASSWORD='topsecret\n",
        b"CLICKHOUSE_PASSWORD=\"topsecret\nPARTITION=202406\n",
        b"CLICKHOUSE_PASSWORD: topsecret\n",
        b"CLICKHOUSE_PASSWORD=topsecret\xff\n",
    ] {
        let tool = Tool::new(untouched());
        fs::write(tool.directory().join(".env"), content).unwrap();
        let outcome = refuses(untouched(), &tool, &[".env"]);
        for output in [&outcome.stdout, &outcome.stderr] {
            assert!(!output.contains("secret"), "{output}");
        }
    }
}

#[test]
fn an_env_file_that_cannot_be_read_is_told() {
    let tool = june(untouched());
    fs::create_dir(tool.directory().join(".env")).unwrap();
    refuses(untouched(), &tool, &[".env", "cannot read"]);
}

#[test]
fn a_missing_password_file_is_told() {
    let tool = june(untouched()).env("CLICKHOUSE_PASSWORD_FILE", "/no/such/password");
    refuses(
        untouched(),
        &tool,
        &["/no/such/password", "CLICKHOUSE_PASSWORD_FILE"],
    );
}

#[test]
fn wrong_values_are_refused_with_the_name_of_the_setting() {
    for (setting, value) in [
        ("--batch-size", "0"),
        ("--batch-size", "many"),
        ("--batch-size", "-5"),
        ("--segment-rows", "0"),
        ("--segment-rows", "1e6"),
        ("--concurrency", "0"),
        ("--concurrency", "65"),
        ("--concurrency", "two"),
        ("--memory-limit", "12 apples"),
        ("--memory-limit", "-1"),
        ("--compression", "gzip"),
        ("--trace-margin-days", "400"),
    ] {
        let tool = june(untouched()).arg(format!("{setting}={value}"));
        refuses(untouched(), &tool, &[setting, value]);
    }
    for (variable, value) in [
        ("BATCH_SIZE", "0"),
        ("SEGMENT_ROWS", "x"),
        ("CONCURRENCY", "1.5"),
        ("STREAM_BLOCK_SIZE", "0"),
        ("MAX_RETRIES", "-1"),
        ("DRY_RUN", "perhaps"),
        ("EXCLUDE_DATASET_ITEMS", "maybe"),
        ("NO_TRACE_METADATA", "2"),
        ("COMPRESSION", "zstd"),
        ("TRACE_MARGIN_DAYS", "-1"),
        ("NO_REMOTE_LOOKUP", "perhaps"),
        ("MEMORY_LIMIT", "much"),
    ] {
        // Whose value it is must be known, or the operator looks at the command line in vain.
        let tool = june(untouched()).env(variable, value);
        let outcome = tool.run();
        assert_refused(&outcome, CONFIGURATION, &[value]);
        let named = outcome.stderr.to_ascii_uppercase().replace('-', "_");
        assert!(named.contains(variable), "{variable}: {}", outcome.stderr);
    }
}

#[test]
fn a_value_that_is_not_text_is_refused_and_not_ignored() {
    // Ignored, it would silently send the state, or the rows, somewhere else.
    for variable in ["STATE_DIR", "TARGET_TABLE", "PARTITION"] {
        let not_text = OsString::from_vec(b"not-utf8-\xff".to_vec());
        let tool = june(untouched()).arg("--dry-run").env(variable, not_text);
        let outcome = tool.run();
        if variable == "STATE_DIR" && outcome.code == Some(0) {
            // A directory may have such a name; then it has to be that one.
            assert!(
                !tool.directory().join("state").exists(),
                "STATE_DIR ignored"
            );
            continue;
        }
        assert_refused(&outcome, CONFIGURATION, &[variable]);
    }
}

#[test]
fn too_little_memory_is_told_with_what_is_needed() {
    let tool = june(untouched()).args(["--memory-limit", "64MiB"]);
    refuses(
        untouched(),
        &tool,
        &["64.0 MiB", "too small", "at least", "--concurrency"],
    );
    // The advice holds: the least that it names is enough.
    let tool = june(untouched()).args(["--memory-limit=1", "--concurrency=1", "--dry-run"]);
    let outcome = tool.run();
    assert_refused(&outcome, CONFIGURATION, &["at least"]);
    let least = outcome
        .stderr
        .split("at least ")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .unwrap()
        .to_owned();
    let limit = format!("--memory-limit={least}");
    june(untouched())
        .args([&*limit, "--concurrency=1", "--dry-run"])
        .run()
        .assert_code(0);
}

#[test]
fn wrong_flags_are_refused_with_what_to_type() {
    for (arguments, words) in [
        (
            &["--partion", "202406"][..],
            &["--partion", "did you mean --partition?"][..],
        ),
        (&["202406"], &["202406", "--partition 202406"]),
        (&["verfy"], &["'verfy'", "verify"]),
        (&["run"], &["'run'", "events-backfill --partition"]),
        (&["--partition", "verify"], &["put it first"]),
        (
            &["--partition", "2024-06"],
            &["'2024-06'", "that is 202406"],
        ),
        (&["--partition"], &["--partition", "needs a value"]),
        (&["--resume", "--restart"], &["--resume", "--restart"]),
        (
            &["--partition", "202406", "--all-partitions"],
            &["--partition", "--all-partitions"],
        ),
        (&["--dry-run=no"], &["--dry-run"]),
    ] {
        // The harness adds flags of its own, which play no part here.
        let outcome = Tool::new(untouched()).args(arguments.iter().copied()).run();
        assert_refused(&outcome, CONFIGURATION, words);
        assert_empty(untouched(), "events_full");
    }
}

#[test]
fn nothing_that_was_refused_left_a_trace_on_the_disk() {
    let tool = Tool::new(untouched()).args(["--partition", "202405"]);
    refuses(untouched(), &tool, &["202405"]);
    let left: Vec<_> = fs::read_dir(tool.directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!Path::new("state").exists());
}

#[test]
fn a_missing_env_file_is_named_where_it_would_give_what_is_missing() {
    let hint = ["there is no file .env in", "run this in its directory"];
    // Everything is in the file, and this is another directory.
    let tool = Tool::unconfigured()
        .env("REPORT", "none")
        .env("STATE_DIR", "")
        .arg("status");
    let words = [
        "no state directory",
        "STATE_DIR is not set",
        hint[0],
        hint[1],
    ];
    assert_refused(&tool.run(), CONFIGURATION, &words);
    fs::write(tool.directory().join(".env"), "# nothing of ours\n").unwrap();
    let outcome = tool.run();
    assert_refused(&outcome, CONFIGURATION, &["no state directory"]);
    assert!(!outcome.stderr.contains(".env"), "{}", outcome.stderr);

    // The environment has all but the database.
    let outcome = june(untouched()).without_env("CLICKHOUSE_DB").run();
    let words = [
        "Check CLICKHOUSE_DB",
        "CLICKHOUSE_DB is not set",
        hint[0],
        hint[1],
    ];
    assert_refused(&outcome, CONFIGURATION, &words);

    // Whoever does without the file is not told of it.
    let outcome = june(untouched()).arg("--resume").run();
    assert_refused(&outcome, CONFIGURATION, &["nothing to resume"]);
    assert!(!outcome.stderr.contains(".env"), "{}", outcome.stderr);
}
