//! Compares the table that the program wrote with what the specification in SQL (`expected.sql`)
//! computes from the same sources, value by value.
//!
//! ```ignore
//! use crate::support::differential;
//!
//! differential::keep_versions_apart(&database, &["traces", "observations", "events_full"]);
//! // … load, run …
//! let specification = differential::Specification::current();
//! specification.fill(&database, "202406", "events_full", "expected");
//! differential::assert_equal(&database, "expected", "events_full");
//! ```
use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::{Database, Running, repository_file};

/// What tells one event from another, in every events table.
const KEY: &str = "project_id, trace_id, span_id, start_time";

/// How long a query may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many characters of an example are shown.
const EXAMPLE_LENGTH: usize = 300;

/// Keeps ClickHouse from merging, so that several versions of a row stay next to each other in the
/// sources, and a row that was written twice stays visible in the target.
pub fn keep_versions_apart(database: &Database, tables: &[&str]) {
    for table in tables {
        execute(
            database,
            &format!("SYSTEM STOP MERGES `{}`.`{table}`", database.name),
        );
    }
}

/// Drops the skipping indexes of a table, which over texts take most of the time of an insert.
#[track_caller]
pub fn drop_indexes(database: &Database, table: &str) {
    let drops = ask(
        database,
        &format!(
            "SELECT arrayStringConcat(groupArray('DROP INDEX ' || name), ', ') \
             FROM system.data_skipping_indices \
             WHERE database = currentDatabase() AND table = '{table}'"
        ),
    );
    execute(database, &format!("ALTER TABLE {table} {drops}"));
}

/// Creates a table with the columns of another one, without its key and indexes, that outlives a
/// restart of the server.
#[track_caller]
pub fn create_plain_table(database: &Database, table: &str, like: &str) {
    for statement in [
        format!("CREATE TABLE {table}_columns AS {like} ENGINE = Memory"),
        format!("CREATE TABLE {table} AS {table}_columns ENGINE = MergeTree ORDER BY tuple()"),
        format!("DROP TABLE {table}_columns"),
    ] {
        execute(database, &statement);
    }
}

/// Waits until nothing of the program is under way in a database: what a client that was killed has
/// begun may outlive it.
#[track_caller]
pub fn wait_for_end_of_queries(database: &Database) {
    let started = Instant::now();
    let under_way = format!(
        "SELECT count() FROM system.processes WHERE http_user_agent LIKE '%events-backfill%' \
         AND (current_database = '{0}' OR query LIKE '%{0}%') \
         AND query NOT LIKE '%system.processes%'",
        database.name
    );
    while ask_number(database, &under_way) > 0 {
        assert!(started.elapsed() < PATIENCE, "a query does not end");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Adds so many observations of June 2024 with 20 KB of input each, in one project, without a trace.
#[track_caller]
pub fn add_wide_rows(database: &Database, rows: u64) {
    execute(
        database,
        &format!(
            "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts, input)
             SELECT concat('observation-', toString(number)), 'nowhere', 'project', 'SPAN',
                 toDateTime64('2024-06-01 00:00:00', 3) + number, now64(),
                 repeat(hex(sipHash128(number)), 625)
             FROM numbers({rows}) SETTINGS max_memory_usage = 0"
        ),
    );
}

/// Makes each insert into `events_full` take so many seconds longer, once its rows are there.
#[track_caller]
pub fn slow_down(database: &Database, seconds: f64) {
    for statement in [
        "CREATE TABLE brake (pulled UInt8) ENGINE = MergeTree ORDER BY pulled",
        "INSERT INTO brake VALUES (1)",
        &format!(
            "CREATE MATERIALIZED VIEW slowly ENGINE = Null AS \
             SELECT sleep(if((SELECT count() FROM brake) > 0, {seconds}, 0)) AS slept FROM events_full"
        ),
    ] {
        execute(database, statement);
    }
}

/// Ends what [`slow_down`] began.
#[track_caller]
pub fn speed_up(database: &Database) {
    execute(database, "TRUNCATE TABLE brake");
}

/// Waits for the first event of a run.
#[track_caller]
pub fn wait_for_event(running: &mut Running, database: &Database) {
    let started = Instant::now();
    while ask_number(database, "SELECT count() FROM events_full") == 0 {
        assert!(running.is_running());
        assert!(started.elapsed() < Duration::from_secs(30));
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a statement that must succeed.
#[track_caller]
pub fn execute(database: &Database, sql: &str) {
    ask(database, sql);
}

/// Runs a query that must succeed, and gives its result without the line break at the end.
#[track_caller]
pub fn ask(database: &Database, sql: &str) -> String {
    match database.query(sql) {
        Ok(answer) => answer.trim_end_matches('\n').to_owned(),
        Err(error) => panic!("ClickHouse refused a statement: {error}\n\n{sql}"),
    }
}

/// Runs a query whose result is one number.
#[track_caller]
pub fn ask_number(database: &Database, sql: &str) -> u64 {
    let answer = ask(database, sql);
    answer
        .parse()
        .unwrap_or_else(|_| panic!("{answer:?} is not a number\n\n{sql}"))
}

/// What a target must contain, as one SELECT with the query parameter `partition`.
pub struct Specification {
    select: String,
}

impl Specification {
    /// The specification of `events_full`.
    pub fn current() -> Self {
        Self::from_file("tests/support/expected.sql")
    }

    /// The specification of the table in `bench-data/older-events.sql`.
    pub fn of_older_events() -> Self {
        Self::from_file("tests/support/expected-older.sql")
    }

    /// The specification of root spans in `events_full`.
    pub fn of_root_spans() -> Self {
        Self::from_file("tests/support/expected-root-spans.sql")
    }

    fn from_file(name: &str) -> Self {
        let path = repository_file(name);
        let select = fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        Self { select }
    }

    /// The same specification for a run without the metadata of traces.
    pub fn without_trace_metadata(mut self) -> Self {
        let metadata = "latest_trace.metadata";
        assert_eq!(
            self.select.matches(metadata).count(),
            2,
            "the specification reads the keys and the values of {metadata} once each"
        );
        self.select = self
            .select
            .replace(metadata, "CAST(map(), 'Map(String, String)')");
        self
    }

    /// Writes what the table `target` must contain into a new table `expected`, which has the same
    /// columns. A column that the specification or `leave_out` leaves out gets its default, which
    /// is what the program must leave it to.
    pub fn fill(&self, database: &Database, partition: &str, target: &str, expected: &str) {
        self.fill_except(database, partition, target, expected, &[]);
    }

    /// See [`Specification::fill`].
    pub fn fill_except(
        &self,
        database: &Database,
        partition: &str,
        target: &str,
        expected: &str,
        leave_out: &[&str],
    ) {
        create_plain_table(database, expected, target);
        self.add_except(database, partition, expected, leave_out);
    }

    /// Adds what the target must contain to the table `expected`, which is there.
    pub fn add(&self, database: &Database, partition: &str, expected: &str) {
        self.add_except(database, partition, expected, &[]);
    }

    fn add_except(&self, database: &Database, partition: &str, expected: &str, leave_out: &[&str]) {
        let mut columns = self.columns(database, partition);
        for name in leave_out {
            let position = columns.iter().position(|column| column == name);
            columns.remove(position.unwrap_or_else(|| panic!("{name} is not specified")));
        }
        let columns = columns.join(", ");
        let insert = format!(
            "INSERT INTO {expected} ({columns}) SELECT {columns} FROM ({})",
            self.select
        );
        self.request(database, partition, &insert);
    }

    /// Names of the columns that are specified.
    fn columns(&self, database: &Database, partition: &str) -> Vec<String> {
        let description = self.request(
            database,
            partition,
            &format!("DESCRIBE TABLE ({}) FORMAT TSV", self.select),
        );
        let names = description
            .lines()
            .filter_map(|line| line.split('\t').next());
        names.map(str::to_owned).collect()
    }

    fn request(&self, database: &Database, partition: &str, sql: &str) -> String {
        let parameters = [
            ("database", database.name.as_str()),
            ("param_partition", partition),
        ];
        match database.server.request(&parameters, sql.as_bytes()) {
            Ok(answer) => String::from_utf8_lossy(&answer).into_owned(),
            Err(error) => panic!("ClickHouse refused the specification: {error}\n\n{sql}"),
        }
    }
}

/// Puts the columns of experiments into the rows of `table` that belong to one.
pub fn add_experiments(database: &Database, table: &str) {
    let path = repository_file("tests/support/experiments.sql");
    let owners = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let columns = ask(database, &format!("DESCRIBE TABLE ({owners}) FORMAT TSV"));
    let replaced: Vec<String> = columns
        .lines()
        .filter_map(|line| line.split('\t').next())
        .filter(|column| column.starts_with("experiment"))
        .map(|column| format!("owner.{column} AS {column}"))
        .collect();
    execute(database, &format!("CREATE TABLE {table}_plain AS {table}"));
    execute(
        database,
        &format!("INSERT INTO {table}_plain SELECT * FROM {table}"),
    );
    execute(database, &format!("TRUNCATE TABLE {table}"));
    execute(
        database,
        &format!(
            "INSERT INTO {table} SELECT event.* REPLACE ({}) FROM {table}_plain AS event \
             LEFT JOIN ({owners}) AS owner ON owner.project_id = event.project_id \
                 AND owner.trace_id = event.trace_id AND owner.span_id = event.span_id",
            replaced.join(", ")
        ),
    );
}

/// Panics, with the columns that differ and an example of each, unless two tables hold the same
/// rows, none of them twice. Either may be a table or `table FINAL`.
#[track_caller]
pub fn assert_equal(database: &Database, expected: &str, actual: &str) {
    let found = differences(database, expected, actual);
    assert!(
        found.is_empty(),
        "{actual} is not what the specification says:\n{}",
        found.join("\n")
    );
}

/// Panics unless a target has, once it is merged, what the table `expected` has.
#[track_caller]
pub fn assert_complete(database: &Database, target: &str) {
    assert_equal(database, "expected", &format!("{target} FINAL"));
}

/// What is different between two tables, one sentence for each kind of difference.
pub fn differences(database: &Database, expected: &str, actual: &str) -> Vec<String> {
    let comparison = Comparison {
        database,
        expected,
        actual,
    };
    let mut found = Vec::new();
    found.extend(comparison.rows_only_in(expected, actual, "missing"));
    found.extend(comparison.rows_only_in(actual, expected, "too many"));
    found.extend(comparison.duplicates());
    found.extend(comparison.different_values());
    found
}

struct Comparison<'a> {
    database: &'a Database<'a>,
    expected: &'a str,
    actual: &'a str,
}

impl Comparison<'_> {
    fn rows_only_in(&self, table: &str, other: &str, verdict: &str) -> Option<String> {
        let from = format!("FROM {table} WHERE ({KEY}) NOT IN (SELECT {KEY} FROM {other})");
        let count = ask_number(self.database, &format!("SELECT count() {from}"));
        (count > 0).then(|| {
            let example = self.example(&format!("SELECT {KEY} {from} ORDER BY ALL"));
            format!("{count} rows are {verdict}, for example\n    {example}")
        })
    }

    fn duplicates(&self) -> Option<String> {
        let groups = format!(
            "SELECT {KEY}, count() AS times FROM {} GROUP BY {KEY} HAVING times > 1",
            self.actual
        );
        let count = ask_number(self.database, &format!("SELECT count() FROM ({groups})"));
        (count > 0).then(|| {
            let example = self.example(&format!("{groups} ORDER BY ALL"));
            format!("{count} rows are there more than once, for example\n    {example}")
        })
    }

    /// Values are compared as the bytes they have in the format RowBinary: unlike `=`, that tells
    /// null, the order of a map and every bit apart, for every type.
    fn different_values(&self) -> Vec<String> {
        let columns = self.columns();
        let counts: Vec<String> = columns
            .iter()
            .map(|column| format!("countIf({})", differs(column)))
            .collect();
        let joined = format!(
            "FROM {} JOIN {} USING ({KEY})",
            with_alias(self.expected, "expected_row"),
            with_alias(self.actual, "actual_row"),
        );
        let answer = ask(
            self.database,
            &format!("SELECT [{}] {joined}", counts.join(", ")),
        );
        let counts: Vec<u64> = serde_json::from_str(&answer).expect("this is an array of numbers");
        assert_eq!(counts.len(), columns.len(), "one count for each column");
        columns
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|(column, count)| {
                let example = self.example(&format!(
                    "SELECT toJSONString(expected_row.`{column}`) AS expected, \
                     toJSONString(actual_row.`{column}`) AS actual, {KEY} \
                     {joined} WHERE {} ORDER BY span_id",
                    differs(column)
                ));
                format!("column {column} differs in {count} rows, for example\n    {example}")
            })
            .collect()
    }

    /// All columns, those that ClickHouse computes included.
    fn columns(&self) -> Vec<String> {
        let names = ask(
            self.database,
            &format!(
                "SELECT name FROM system.columns WHERE database = '{}' AND table = '{}' \
                 ORDER BY position",
                self.database.name,
                self.expected.trim_end_matches(" FINAL"),
            ),
        );
        let names: Vec<String> = names.lines().map(str::to_owned).collect();
        assert!(!names.is_empty(), "{} has columns", self.expected);
        names
    }

    fn example(&self, sql: &str) -> String {
        let rows = ask(
            self.database,
            &format!("SELECT * FROM ({sql}) LIMIT 1 FORMAT Vertical"),
        );
        let mut shown = String::new();
        for line in rows.lines().skip(2) {
            let line: String = line.chars().take(EXAMPLE_LENGTH).collect();
            // Writing to a string does not fail.
            let _ = write!(shown, "\n    {line}");
        }
        shown.trim_start().to_owned()
    }
}

fn differs(column: &str) -> String {
    format!(
        "formatRow('RowBinary', expected_row.`{column}`) \
         != formatRow('RowBinary', actual_row.`{column}`)"
    )
}

/// `table AS alias`, or `table AS alias FINAL`.
fn with_alias(table: &str, alias: &str) -> String {
    match table.strip_suffix(" FINAL") {
        Some(table) => format!("{table} AS {alias} FINAL"),
        None => format!("{table} AS {alias}"),
    }
}
