//! A backfill of a deployment that is alive leaves each event once, as v4 reads it: in `events_core`,
//! without FINAL. Nothing that Langfuse writes by itself is doubled or made worse, whatever dies
//! meanwhile, and nothing is written that is no longer so.
//!
//! Merges are stopped throughout, so a row that is written twice is there twice.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{
    Specification, ask, ask_number, assert_equal, execute, keep_versions_apart, slow_down,
    speed_up, wait_for_end_of_queries,
};
use crate::support::live;
use crate::support::live::{IS_LIVE, IS_TRACE_ROOT, KEY, Way, as_v4_reads};
use crate::support::proxy::{Action, FOREVER, Fault, Place, Proxy};
use crate::support::{Database, Options, Outcome, Running, SAMPLE_PARTITION, Server, Tool};

/// Enough for a dozen segments, and for most oddities of the generator.
const OBSERVATIONS: u64 = 12_000;

/// How often the program is killed; EVENTS_BACKFILL_KILLS sets another number.
const KILLS: u32 = 12;

/// How often the server is killed.
const SERVER_KILLS: u32 = 5;

/// How long something is waited for that comes within seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What tells traces apart that are to be treated differently: a number below 20.
const CLASS: &str = "(cityHash64(project_id, trace_id) % 20)";

/// What ClickHouse calls the program.
const OURS: &str = "http_user_agent LIKE '%events-backfill%'";

// -------------------------------------------------------------------------------------------------
// Months
// -------------------------------------------------------------------------------------------------

/// Keeps rows that were written twice apart, also after a restart of the server, which would forget
/// SYSTEM STOP MERGES.
fn never_merge(database: &Database) {
    for table in ["events_full", "events_core"] {
        execute(
            database,
            &format!(
                "ALTER TABLE {table} MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1, \
                 max_bytes_to_merge_at_min_space_in_pool = 1"
            ),
        );
    }
    keep_versions_apart(database, &["events_full", "events_core"]);
}

/// Makes `observations`, which is empty, a table with short granules: even a small month then has
/// many segments.
fn shorten_granules(database: &Database) {
    let create = ask(database, "SHOW CREATE TABLE observations FORMAT TSVRaw");
    let short = create.replace("index_granularity = 8192", "index_granularity = 128");
    assert_ne!(create, short);
    execute(database, "DROP TABLE observations");
    execute(database, &short);
}

/// A new database with the tables of a current Langfuse.
fn empty(server: &'static Server, name: &str) -> Database<'static> {
    let database = server.database(name);
    database.load_schema();
    shorten_granules(&database);
    never_merge(&database);
    keep_versions_apart(&database, &["traces", "observations"]);
    database
}

/// A month with every oddity, and the table `history`: what a run into an empty target writes.
fn source(server: &'static Server) -> Database<'static> {
    let database = empty(server, "source");
    database.load_sample_month(OBSERVATIONS);
    add_experiment(&database);
    // A trace that comes by the direct path has no observation with the id of a root span.
    let is_root = "ALTER TABLE observations DELETE WHERE id = concat('t-', trace_id)";
    let name = format!("`{}`.observations", database.name);
    execute(&database, &format!("SYSTEM START MERGES {name}"));
    execute(&database, &format!("{is_root} SETTINGS mutations_sync = 2"));
    execute(&database, &format!("SYSTEM STOP MERGES {name}"));
    live::fill_history(&database, SAMPLE_PARTITION, "history");
    let history = ask_number(&database, "SELECT count() FROM history");
    assert!(history > OBSERVATIONS, "{history} events");
    database
}

/// Makes one trace in ten an item of one more experiment, half of them by one of its spans.
fn add_experiment(database: &Database) {
    execute(
        database,
        "INSERT INTO dataset_run_items_rmt (id, project_id, dataset_run_id, dataset_item_id, \
             dataset_id, trace_id, observation_id, created_at, updated_at, dataset_run_name, \
             dataset_item_expected_output, dataset_run_created_at, event_ts, is_deleted) \
         SELECT concat('more ', project_id, trace_id), project_id, 'run-more', \
             concat('item of ', trace_id), 'dataset-more', trace_id, \
             if(cityHash64(trace_id) % 2 = 0, NULL, min(o.id)), '2024-06-30 00:00:00', \
             '2024-06-30 00:00:00', 'More', 'expected', '2024-06-30 00:00:00', \
             '2024-06-30 00:00:00', 0 \
         FROM observations AS o FINAL \
         WHERE trace_id != '' AND cityHash64(project_id, trace_id, 'item') % 10 = 0 \
         GROUP BY project_id, trace_id",
    );
}

/// A new database with the sources and the table `history` of [`source`], and an empty target.
fn copy_of(source: &Database<'static>, name: &str) -> Database<'static> {
    let database = source.server.database(name);
    database.load_schema();
    never_merge(&database);
    for table in ["traces", "observations", "dataset_run_items_rmt"] {
        execute(&database, &format!("DROP TABLE {table}"));
    }
    for table in ["traces", "observations", "dataset_run_items_rmt", "history"] {
        let original = format!("`{}`.{table}", source.name);
        execute(
            &database,
            &format!("CREATE TABLE {table} CLONE AS {original}"),
        );
    }
    keep_versions_apart(&database, &["traces", "observations"]);
    database
}

/// See [`copy_of`]; on the server that all tests share.
fn month(name: &str) -> Database<'static> {
    static SOURCE: OnceLock<Database<'static>> = OnceLock::new();
    copy_of(SOURCE.get_or_init(|| source(Server::shared())), name)
}

/// A server for those tests that kill it or its connections, and the sources of [`month`] on it. One
/// test at a time.
fn mortal_month(name: &str) -> (Database<'static>, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    static SERVER: OnceLock<Server> = OnceLock::new();
    static SOURCE: OnceLock<Database<'static>> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let server = SERVER.get_or_init(|| Server::start(Options::default()));
    if server.query("SELECT 1").is_err() {
        server.restart();
    }
    let source = SOURCE.get_or_init(|| source(server));
    (copy_of(source, name), turn)
}

/// The program, ready to write a month with root spans and experiments, in small pieces.
fn tool(database: &Database) -> Tool {
    tool_without_concurrency(database).args(["--concurrency", "2"])
}

/// Like [`tool`], one piece after the other.
fn unhurried_tool(database: &Database) -> Tool {
    tool_without_concurrency(database).args(["--concurrency", "1"])
}

fn tool_without_concurrency(database: &Database) -> Tool {
    Tool::new(database)
        .args(["--partition", SAMPLE_PARTITION])
        .args(["--root-spans", "--experiments"])
        .args(["--segment-rows", "300", "--batch-size", "100"])
}

fn checkpoint(tool: &Tool) -> PathBuf {
    tool.state_dir().join(SAMPLE_PARTITION).join("checkpoint")
}

/// A number in the report of the last run.
#[track_caller]
fn reported(tool: &Tool, field: &str) -> u64 {
    let report = tool.report();
    report[field]
        .as_u64()
        .unwrap_or_else(|| panic!("{field} is not a number in {report:#}"))
}

fn count(database: &Database, from: &str) -> u64 {
    ask_number(database, &format!("SELECT count() FROM {from}"))
}

/// Panics unless both target tables hold the rows of `wanted`, each once, also for a reader that
/// does not say FINAL.
#[track_caller]
fn assert_holds(database: &Database, wanted: &str) {
    for table in ["events_core", "events_full"] {
        let numbers = ask(
            database,
            &format!("SELECT count(), uniqExact(project_id, trace_id, span_id) FROM {table}"),
        );
        let (rows, spans) = numbers.split_once('\t').expect("two numbers");
        assert_eq!(rows, spans, "rows and spans in {table}");
        // What ClickHouse is told to replace is no other row: a type that differs, for example.
        assert_eq!(
            as_v4_reads(database, table),
            as_v4_reads(database, wanted),
            "{table}"
        );
    }
    assert_equal(database, wanted, "events_full");
    assert_same_keys(database);
    for statement in [
        "DROP TABLE IF EXISTS wanted_core",
        "CREATE TABLE wanted_core AS events_core ENGINE = Memory",
        &format!(
            "INSERT INTO wanted_core SELECT * REPLACE (leftUTF8(input, 200) AS input, \
                 leftUTF8(output, 200) AS output, \
                 arrayMap(value -> leftUTF8(value, 200), metadata_values) AS metadata_values) \
             FROM {wanted}"
        ),
    ] {
        execute(database, statement);
    }
    assert_equal(database, "wanted_core", "events_core");
}

/// Panics unless `events_core` holds the keys of `events_full`.
#[track_caller]
fn assert_same_keys(database: &Database) {
    for (table, other) in [
        ("events_full", "events_core"),
        ("events_core", "events_full"),
    ] {
        let from = format!("{table} WHERE ({KEY}) NOT IN (SELECT {KEY} FROM {other})");
        assert_eq!(count(database, &from), 0, "rows of {table} not in {other}");
    }
}

/// Waits until something is so, while the program runs.
#[track_caller]
fn wait_until(run: &mut Running, what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(run.is_running(), "the run ended before {what}");
        assert!(started.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Begins a run, and asks it to end once it has written something.
#[track_caller]
fn interrupt_after_first_event(database: &Database, tool: Tool) -> Tool {
    // Slowly: on a machine that has much to do, the event is seen late, and most would be written by then.
    let tool = tool.env("MAX_ROWS_PER_SECOND", "500");
    let mut run = tool.spawn();
    wait_until(&mut run, "the first event", || {
        count(database, "events_core") > 0
    });
    run.terminate();
    run.wait().assert_code(143);
    wait_for_end_of_queries(database);
    tool.without_env("MAX_ROWS_PER_SECOND")
}

// -------------------------------------------------------------------------------------------------
// Live rows
// -------------------------------------------------------------------------------------------------

/// Classes of traces, by what Langfuse does of them and when: all by the staging path, all by the
/// direct path; half of the spans by the one, the roots alone by the other. And those that changed
/// minutes ago and come by either path while the run goes on, or after it.
mod class {
    pub const STAGED: u64 = 0;
    pub const DIRECT: u64 = 1;
    pub const HALF_STAGED: u64 = 2;
    pub const DIRECT_ROOTS: u64 = 3;
    pub const STAGED_MEANWHILE: u64 = 4;
    pub const DIRECT_MEANWHILE: u64 = 5;
    pub const STAGED_LATER: u64 = 6;
    pub const DIRECT_LATER: u64 = 7;
}

/// Spans of a class that Langfuse writes.
fn of_class(class: u64) -> String {
    let part = match class {
        class::HALF_STAGED => {
            "cityHash64(span_id) % 2 = 0 AND (project_id, trace_id) NOT IN \
             (SELECT project_id, trace_id FROM history WHERE experiment_id != '')"
        }
        class::DIRECT_ROOTS => "parent_span_id = concat('t-', trace_id)",
        _ => "true",
    };
    format!("{CLASS} = {class} AND trace_id != '' AND {part}")
}

/// A month in which the traces of some classes have just changed, with all their observations, and
/// the tables `live_before`, `live_meanwhile` and `live_later`.
fn month_with_live_rows(name: &str) -> Database<'static> {
    let database = month(name);
    for (table, trace) in [("observations", "trace_id"), ("traces", "id")] {
        let class = CLASS.replace("trace_id", &format!("o.{trace}"));
        execute(
            &database,
            &format!(
                "INSERT INTO {table} SELECT o.* REPLACE (now64(3) - INTERVAL 10 MINUTE AS event_ts) \
                 FROM (SELECT * FROM {table} ORDER BY event_ts DESC LIMIT 1 BY project_id, {trace}, id) AS o \
                 WHERE o.is_deleted = 0 AND {class} BETWEEN {} AND {}",
                class::STAGED_MEANWHILE,
                class::DIRECT_LATER
            ),
        );
    }
    execute(&database, "DROP TABLE history");
    live::fill_history(&database, SAMPLE_PARTITION, "history");
    for (live, classes) in [
        (
            "live_before",
            &[
                (Way::Staging, class::STAGED),
                (Way::Direct, class::DIRECT),
                (Way::Staging, class::HALF_STAGED),
                (Way::Direct, class::DIRECT_ROOTS),
            ][..],
        ),
        (
            "live_meanwhile",
            &[
                (Way::Staging, class::STAGED_MEANWHILE),
                (Way::Direct, class::DIRECT_MEANWHILE),
            ],
        ),
        (
            "live_later",
            &[
                (Way::Staging, class::STAGED_LATER),
                (Way::Direct, class::DIRECT_LATER),
            ],
        ),
    ] {
        live::create_table(&database, live);
        for (way, class) in classes {
            live::add(&database, live, *way, &of_class(*class));
        }
    }
    assert_is_alive(&database);
    database
}

/// Guards the tests themselves.
fn assert_is_alive(database: &Database) {
    for (live, least) in [
        ("live_before", 1_000),
        ("live_meanwhile", 600),
        ("live_later", 600),
    ] {
        let rows = count(database, live);
        assert!(rows > least, "{rows} rows in {live}");
        assert_eq!(count(database, &format!("{live} WHERE NOT ({IS_LIVE})")), 0);
        let twice =
            format!("SELECT count() - uniqExact(project_id, trace_id, span_id) FROM {live}");
        assert_eq!(ask_number(database, &twice), 0);
    }
    for (what, condition) in [
        ("by the staging path", "source = 'ingestion-api-dual-write'"),
        ("of OpenTelemetry", "source = 'otel-dual-write'"),
        ("of experiments", "source LIKE '%-dual-write-experiments'"),
        ("by the direct path", "source = 'otel'"),
        (
            "with roots of their own",
            "parent_span_id = '' AND source = 'otel'",
        ),
        ("with items", "source = 'otel' AND experiment_id != ''"),
        (
            "with items of roots",
            "source = 'otel' AND span_id = experiment_item_root_span_id",
        ),
        ("with root spans of traces", IS_TRACE_ROOT),
    ] {
        let rows = count(database, &format!("live_before WHERE {condition}"));
        assert!(rows > 0, "no live rows {what}");
    }
}

/// The moment up to which a run writes what changed, give or take the minutes of a test.
const UNTIL: &str = "(now64(6) - INTERVAL 30 MINUTE)";

#[test]
fn a_run_over_a_living_month_adds_the_history_and_nothing_else() {
    let database = month_with_live_rows("living");
    live::write(&database, "live_before");
    let before = as_v4_reads(&database, "live_before");
    assert_eq!(as_v4_reads(&database, "events_core"), before);
    let wanted = "wanted";
    live::fill_wanted(&database, "live_before", UNTIL, wanted);
    let ours = count(&database, wanted) - count(&database, "live_before");
    assert!(ours > 5_000, "{ours} events are for the run to write");

    let tool = tool(&database);
    let mut run = tool.spawn();
    let already = count(&database, "live_before");
    wait_until(&mut run, "the first event", || {
        count(&database, "events_core") > already
    });
    live::write(&database, "live_meanwhile");
    let outcome = run.wait();
    outcome.assert_code(0).assert_stderr_contains("--until");
    execute(
        &database,
        &format!("INSERT INTO {wanted} SELECT * FROM live_meanwhile"),
    );
    assert_holds(&database, wanted);
    assert_reported_as_left(&database, &tool, ours);

    live::write(&database, "live_later");
    execute(
        &database,
        &format!("INSERT INTO {wanted} SELECT * FROM live_later"),
    );
    assert_holds(&database, wanted);
    assert_only_one_root(&database);
    assert_items_are_where_they_were(&database);
}

/// Guards the tests themselves: what they want can be, and they notice what is wrong with it.
#[test]
fn what_is_wanted_of_a_living_month_has_each_event_once() {
    let database = month_with_live_rows("fixtures");
    live::write(&database, "live_before");
    live::fill_wanted(&database, "live_before", UNTIL, "wanted");
    for (what, left) in [
        ("rows", live::has_live_row("live_before")),
        ("roots", live::has_live_root("live_before")),
        ("later", format!("event_ts > {UNTIL}")),
    ] {
        let left = count(&database, &format!("history WHERE {left}"));
        assert!(left > 100, "{left} {what} are left to Langfuse");
    }
    let ours = format!("SELECT * FROM wanted WHERE NOT ({IS_LIVE})");
    execute(&database, &format!("INSERT INTO events_full {ours}"));
    for live in ["live_meanwhile", "live_later"] {
        live::write(&database, live);
        execute(
            &database,
            &format!("INSERT INTO wanted SELECT * FROM {live}"),
        );
    }
    assert_holds(&database, "wanted");
    assert_only_one_root(&database);
    assert_items_are_where_they_were(&database);

    type Assertion = fn(&Database);
    let doubled: [(&str, Assertion); 3] = [
        (
            "history WHERE event_ts <= UNTIL AND ROOT",
            assert_only_one_root,
        ),
        (
            "history WHERE experiment_id != ''",
            assert_items_are_where_they_were,
        ),
        ("wanted LIMIT 1", |database| {
            assert_holds(database, "wanted")
        }),
    ];
    for (rows, assertion) in doubled {
        let rows = rows
            .replace("UNTIL", UNTIL)
            .replace("ROOT", &live::has_live_root("live_before"));
        execute(
            &database,
            &format!("INSERT INTO events_full SELECT * FROM {rows}"),
        );
        let noticed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            assertion(&database);
        }));
        assert!(noticed.is_err(), "{rows} written again went unnoticed");
    }
}

/// Panics unless the report counts what was left to Langfuse.
#[track_caller]
fn assert_reported_as_left(database: &Database, tool: &Tool, ours: u64) {
    let report = tool.report();
    let old = |condition: &str| {
        count(
            database,
            &format!("history WHERE event_ts <= {UNTIL} AND {condition}"),
        )
    };
    let inserted = reported(tool, "events_inserted") + reported(tool, "root_spans_inserted");
    assert_eq!(inserted, ours, "{report:#}");
    assert_eq!(
        reported(tool, "left_to_live_rows"),
        old(&live::has_live_row("live_before")),
        "{report:#}"
    );
    assert_eq!(
        reported(tool, "root_spans_left_to_live_roots"),
        old(&live::has_live_root("live_before")),
        "{report:#}"
    );
    assert!(reported(tool, "items_left_to_live_spans") > 0, "{report:#}");
    let changed = count(database, &format!("history WHERE event_ts > {UNTIL}"));
    assert_eq!(reported(tool, "left_to_live_path"), changed, "{report:#}");
    assert!(report["until"].is_string(), "{report:#}");
}

/// Panics if a trace with a live root has another one that is a backfill's.
#[track_caller]
fn assert_only_one_root(database: &Database) {
    let second = format!(
        "events_core WHERE parent_span_id = '' AND NOT ({IS_LIVE}) AND (project_id, trace_id) IN \
         (SELECT project_id, trace_id FROM events_core WHERE parent_span_id = '' AND {IS_LIVE})"
    );
    assert_eq!(count(database, &second), 0, "second roots");
}

/// Panics if a span of a backfill says that it belongs to an item which live spans carry.
#[track_caller]
fn assert_items_are_where_they_were(database: &Database) {
    let item = "project_id, trace_id, experiment_id, experiment_item_id";
    let doubled = format!(
        "events_core WHERE experiment_id != '' AND NOT ({IS_LIVE}) AND ({item}) IN \
         (SELECT {item} FROM events_core WHERE experiment_id != '' AND {IS_LIVE})"
    );
    assert_eq!(count(database, &doubled), 0, "items on spans of both");
    let roots = "SELECT max(roots) FROM (SELECT uniqExact(experiment_item_root_span_id) AS roots \
                 FROM events_core WHERE experiment_id != '' \
                 GROUP BY project_id, trace_id, experiment_id, experiment_item_id)";
    assert_eq!(ask_number(database, roots), 1, "root spans of an item");
}

#[test]
fn a_run_over_a_living_month_that_is_killed_adds_the_history_and_nothing_else() {
    let database = month_with_live_rows("living_killed");
    live::write(&database, "live_before");
    live::fill_wanted(&database, "live_before", UNTIL, "wanted");
    run_with_kills(&database, tool(&database), kills() / 2);
    assert_holds(&database, "wanted");
}

#[test]
fn a_month_that_langfuse_has_written_itself_stays_byte_for_byte() {
    let database = month("all_live");
    live::create_table(&database, "live");
    live::add(&database, "live", Way::Staging, "trace_id != ''");
    live::write(&database, "live");
    live::fill_wanted(&database, "live", UNTIL, "wanted");
    let tool = tool(&database);
    tool.run().assert_code(0);
    assert_holds(&database, "wanted");
    let without_trace = count(&database, "history WHERE trace_id = ''");
    assert_eq!(reported(&tool, "events_inserted"), without_trace);
    assert_eq!(reported(&tool, "root_spans_inserted"), 0);
    assert_eq!(
        reported(&tool, "left_to_live_rows"),
        count(&database, "history") - without_trace
    );
}

#[test]
fn what_langfuse_has_begun_to_write_since_a_run_was_interrupted_is_left_to_it() {
    let database = month_with_live_rows("live_since");
    // Nothing live is there yet.
    let tool = interrupt_after_first_event(&database, tool(&database));
    let ours = count(&database, "events_full");
    // Langfuse has the events that are there, and writes some of the others.
    let others = format!(
        "live_before WHERE ({KEY}) NOT IN (SELECT {KEY} FROM events_full) \
         AND (project_id, trace_id) NOT IN (SELECT project_id, trace_id FROM events_full)"
    );
    live::create_table(&database, "live_others");
    execute(
        &database,
        &format!("INSERT INTO live_others SELECT * FROM {others}"),
    );
    assert!(count(&database, "live_others") > 500);
    live::write(&database, "live_others");
    let tool = with_resume(tool);
    tool.run()
        .assert_code(0)
        .assert_stderr_contains("left to Langfuse");
    for table in ["events_full", "events_core"] {
        let twice =
            format!("SELECT count() - uniqExact(project_id, trace_id, span_id) FROM {table}");
        assert_eq!(ask_number(&database, &twice), 0, "{table}");
    }
    assert_only_one_root(&database);
    let lost =
        format!("live_others WHERE ({KEY}, source) NOT IN (SELECT {KEY}, source FROM events_core)");
    assert_eq!(count(&database, &lost), 0);
    assert!(count(&database, "events_full") > ours + count(&database, "live_others"));
    assert!(reported(&tool, "left_to_live_rows") > 100);
    assert!(reported(&tool, "left_to_live_path") > 100);
}

#[test]
fn a_live_root_of_a_trace_that_was_bookmarked_later_stays_as_it_is() {
    let database = month("bookmarked_later");
    live::create_table(&database, "live");
    live::add(
        &database,
        "live",
        Way::Staging,
        "cityHash64(trace_id) % 3 = 0",
    );
    live::write(&database, "live");
    let roots = format!("live WHERE {IS_TRACE_ROOT}");
    let number = count(&database, &roots);
    assert!(number > 100, "{number} live roots");
    // A new version of the trace, days before the run; the events are changed in place.
    execute(
        &database,
        "INSERT INTO traces SELECT t.* REPLACE (true AS bookmarked, \
             t.event_ts + INTERVAL 1 DAY AS event_ts) \
         FROM (SELECT * FROM traces ORDER BY event_ts DESC LIMIT 1 BY project_id, id) AS t \
         WHERE t.is_deleted = 0 AND cityHash64(t.id) % 3 = 0",
    );
    tool(&database).run().assert_code(0);
    let both = format!(
        "SELECT count(), uniqExact(project_id, trace_id, span_id), countIf({IS_LIVE}) \
         FROM events_core WHERE {IS_TRACE_ROOT} \
         AND (project_id, trace_id) IN (SELECT project_id, trace_id FROM {roots})"
    );
    assert_eq!(
        ask(&database, &both),
        format!("{number}\t{number}\t{number}")
    );
}

// -------------------------------------------------------------------------------------------------
// What has just changed
// -------------------------------------------------------------------------------------------------

/// The small month with observations that changed hours or minutes ago.
fn changing_month(name: &str) -> Database<'static> {
    let database = crate::support::small_month(name);
    never_merge(&database);
    for (id, minutes) in [
        ("observation-2", 10),
        ("new", 20),
        ("changed hours ago", 150),
    ] {
        execute(
            &database,
            &format!(
                "INSERT INTO observations (id, trace_id, project_id, type, start_time, name, \
                     event_ts, is_deleted) \
                 VALUES ('{id}', 'trace-1', 'project', 'GENERATION', '2024-06-03 10:00:01', \
                     'changed', now64(3) - INTERVAL {minutes} MINUTE, 0)"
            ),
        );
    }
    database
}

/// A live row of another trace.
fn write_live_row(database: &Database) {
    execute(
        database,
        "INSERT INTO events_full (project_id, trace_id, span_id, start_time, event_ts, source) \
         VALUES ('project', 'live', 'live', '2024-06-20 10:00:00', now64(6), 'otel')",
    );
}

fn plain_tool(database: &Database) -> Tool {
    Tool::new(database).args([
        "--partition",
        SAMPLE_PARTITION,
        "--no-root-spans",
        "--no-experiments",
    ])
}

/// The ids of the spans that a backfill has written.
fn written(database: &Database) -> String {
    ask(
        database,
        &format!(
            "SELECT arrayStringConcat(arraySort(groupArray(replaceOne(span_id, 'observation-', ''))), ' ') \
             FROM events_core WHERE NOT ({IS_LIVE})"
        ),
    )
}

#[test]
fn what_changed_within_the_last_hour_is_left_to_langfuse_where_it_writes_live_rows() {
    let database = changing_month("last_hour");
    write_live_row(&database);
    let tool = plain_tool(&database);
    let outcome = tool.run();
    outcome.assert_code(0).assert_stderr_contains("--until");
    // Not the older version of the second observation either.
    assert_eq!(written(&database), "1 3 4 5 6 changed hours ago");
    assert_eq!(reported(&tool, "left_to_live_path"), 2);
    assert!(tool.report()["until"].is_string());
    let until = tool.report()["until"].as_str().unwrap().to_owned();
    let age =
        format!("SELECT dateDiff('second', parseDateTime64BestEffort('{until}', 6), now64(6))");
    let age = ask_number(&database, &age);
    assert!((3_600..3_700).contains(&age), "{until} is {age} s ago");
}

#[test]
fn what_changed_within_the_last_hour_is_written_where_langfuse_writes_no_live_rows() {
    let database = changing_month("no_live_rows");
    let tool = plain_tool(&database);
    tool.run().assert_code(0);
    assert_eq!(written(&database), "1 2 3 4 5 6 changed hours ago new");
    assert_eq!(reported(&tool, "left_to_live_path"), 0);
    assert!(tool.report()["until"].is_null(), "{}", tool.report());
}

#[test]
fn another_moment_can_be_set_from_which_langfuse_writes_by_itself() {
    for (number, until, expected) in [
        (1, "2024-06-04 10:00:01", "1 3"),
        (2, "2024-06-05T12:00:00Z", "1 3 4"),
        (3, "2024-06-05T12:00:00+02:00", "1 3"),
        (4, "2024-06-05T12:00:01+02:00", "1 3 4"),
    ] {
        let database = changing_month(&format!("until_{number}"));
        write_live_row(&database);
        let tool = plain_tool(&database).args(["--until", until]);
        tool.run().assert_code(0);
        assert_eq!(written(&database), expected, "--until {until}");
        assert!(tool.report()["until"].is_string(), "{}", tool.report());
    }
    let database = changing_month("until_far");
    write_live_row(&database);
    let tool = plain_tool(&database).args(["--until", "2100-01-01 00:00:00"]);
    tool.run().assert_code(0);
    assert_eq!(written(&database), "1 2 3 4 5 6 changed hours ago new");
    let refused = plain_tool(&database).args(["--until", "yesterday"]).run();
    refused.assert_code(2).assert_stderr_contains("yesterday");
}

// -------------------------------------------------------------------------------------------------
// Each event once
// -------------------------------------------------------------------------------------------------

fn kills() -> u32 {
    let wanted = std::env::var("EVENTS_BACKFILL_KILLS").ok();
    wanted.and_then(|kills| kills.parse().ok()).unwrap_or(KILLS)
}

/// Runs the program, kills it so many times, and resumes it until it is done. It is killed at any
/// moment, and then a moment after it has written something. Its inserts are slow until then: the
/// month would be done before most of the kills.
fn run_with_kills(database: &Database, mut tool: Tool, kills: u32) {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut in_the_midst = 0;
    slow_down(database, 0.3);
    for kill in 0..kills {
        tool = with_resume(tool);
        let before = count(database, "events_full");
        let mut run = tool.spawn();
        if kill % 3 == 0 {
            thread::sleep(Duration::from_millis(random.u64(20..2_000)));
        } else {
            while run.is_running() && count(database, "events_full") == before {
                thread::sleep(Duration::from_millis(5));
            }
            thread::sleep(Duration::from_millis(random.u64(0..300)));
        }
        if !run.is_running() {
            run.wait().assert_code(0);
            break;
        }
        run.kill();
        run.wait();
        if count(database, "events_full") > before {
            in_the_midst += 1;
        }
    }
    speed_up(database);
    println!("seed {seed}: killed {in_the_midst} times after it had written something");
    assert!(in_the_midst >= kills / 4, "too few kills came in time");
    with_resume(tool).run().assert_code(0);
}

#[test]
fn a_run_killed_at_random_moments_leaves_each_event_once() {
    let database = month("killed");
    run_with_kills(&database, tool(&database), kills());
    assert_holds(&database, "history");
}

/// Goes on with a run, however often it takes.
fn run_to_the_end(mut tool: Tool, first: Running) -> Tool {
    let mut outcome = first.wait();
    let mut attempts = 0;
    while outcome.code != Some(0) {
        outcome.assert_code(1);
        attempts += 1;
        assert!(attempts < 5, "{outcome:?}");
        tool = with_resume(tool);
        outcome = tool.run();
    }
    tool
}

/// The program that goes on with what it began, if it has begun.
fn with_resume(tool: Tool) -> Tool {
    let tool = tool.without_arg("--resume");
    match checkpoint(&tool).exists() {
        true => tool.arg("--resume"),
        false => tool,
    }
}

#[test]
fn a_server_killed_at_random_moments_costs_no_event_and_doubles_none() {
    let (database, _turn) = mortal_month("server_killed");
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // Now a run outlasts the server's absence, and now it does not.
    let mut tool = tool(&database).env("MAX_RETRIES", "3");
    slow_down(&database, 0.3);
    let mut run = tool.spawn();
    let mut in_the_midst = 0;
    for kill in 0..SERVER_KILLS {
        // At any moment, and then a moment after something was written.
        let before = count(&database, "events_full");
        let wanted = if kill % 2 == 0 { before + 1 } else { 0 };
        while run.is_running() && count(&database, "events_full") < wanted {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(random.u64(0..700)));
        if !run.is_running() {
            break;
        }
        in_the_midst += 1;
        database.server.kill();
        thread::sleep(Duration::from_millis(random.u64(0..1_500)));
        database.server.restart();
        if !run.is_running() {
            let outcome = run.wait();
            if outcome.code == Some(0) {
                run = tool.spawn();
                break;
            }
            outcome.assert_code(1);
            tool = with_resume(tool);
            run = tool.spawn();
        }
    }
    assert!(
        in_the_midst >= SERVER_KILLS / 2,
        "too few kills came in time"
    );
    speed_up(&database);
    run_to_the_end(tool, run);
    assert_holds(&database, "history");
}

/// Runs the program until the server has written an insert, and kills it before it has the answer.
fn kill_before_an_answer(database: &Database, proxy: &Proxy, tool: &Tool, skipped: u64) {
    let hang = Fault::once(
        "INSERT INTO",
        Place::ResponseByte(0),
        Action::Stall(FOREVER),
    );
    let hang = proxy.arm(hang.skip(skipped));
    let mut run = tool.spawn();
    wait_until(&mut run, "an insert without an answer", || hang.count() > 0);
    run.kill();
    run.wait();
    hang.lift();
    wait_for_end_of_queries(database);
}

#[test]
fn rows_that_only_events_core_lacks_are_given_to_it_when_a_run_is_resumed() {
    let (database, _turn) = mortal_month("core_lacks");
    database.server.unless_it_crashes(|| {
        let database = copy_of(&database, "core_lacks_again");
        let proxy = Proxy::start(database.server.http_port());
        let mut tool = unhurried_tool(&database).env("CLICKHOUSE_URL", proxy.url());
        for skipped in [0, 1] {
            tool = with_resume(tool);
            kill_before_an_answer(&database, &proxy, &tool, skipped);
            // As if the server had died between its two parts.
            let part = ask(
                &database,
                "SELECT name FROM system.parts WHERE database = currentDatabase() \
                     AND table = 'events_core' AND active AND name NOT LIKE 'patch%' ORDER BY min_block_number DESC LIMIT 1",
            );
            execute(
                &database,
                &format!("ALTER TABLE events_core DROP PART '{part}'"),
            );
            let missing = count(&database, "events_full") - count(&database, "events_core");
            assert!(missing > 0);
            println!("{missing} rows are in events_full only");
        }
        with_resume(tool).run().assert_code(0);
        assert_holds(&database, "history");
    });
}

#[test]
fn rows_that_lost_their_way_to_events_core_are_in_both_tables_once_a_run_is_resumed() {
    let database = month("core_detached");
    let tool = tool(&database);
    let mut run = tool.spawn();
    wait_until(&mut run, "the first event", || {
        count(&database, "events_core") > 0
    });
    run.kill();
    run.wait();
    wait_for_end_of_queries(&database);
    // Rows as the killed attempt would have written them next, had the server not died with it.
    execute(&database, "DETACH TABLE events_core_mv");
    let columns = live::insertable_columns(&database);
    execute(
        &database,
        &format!(
            "INSERT INTO events_full ({columns}) SELECT {columns} FROM history \
             WHERE ({KEY}) NOT IN (SELECT {KEY} FROM events_full) AND cityHash64(span_id) % 10 = 0"
        ),
    );
    execute(&database, "ATTACH TABLE events_core_mv");
    let missing = count(&database, "events_full") - count(&database, "events_core");
    assert!(missing > 200, "{missing} rows are in events_full only");
    with_resume(tool).run().assert_code(0);
    assert_holds(&database, "history");
}

#[test]
fn an_insert_whose_answer_is_lost_is_not_written_twice() {
    let (database, _turn) = mortal_month("lost_answers");
    database.server.unless_it_crashes(|| {
        let database = copy_of(&database, "lost_answers_again");
        let proxy = Proxy::start(database.server.http_port());
        let cuts = [0, 1, 2, 3].map(|skipped| {
            let cut = Fault::once("INSERT INTO", Place::ResponseByte(0), Action::Cut);
            proxy.arm(cut.skip(skipped))
        });
        let tool = tool(&database).env("CLICKHOUSE_URL", proxy.url());
        tool.run().assert_code(0);
        let happened: u64 = cuts.iter().map(|cut| cut.count()).sum();
        assert!(happened >= 3, "{happened} answers were lost");
        assert_holds(&database, "history");
    });
}

#[test]
fn a_run_that_a_lost_answer_ended_writes_nothing_twice_when_it_is_resumed() {
    let (database, _turn) = mortal_month("lost_for_good");
    database.server.unless_it_crashes(|| {
        let database = copy_of(&database, "lost_for_good_again");
        let proxy = Proxy::start(database.server.http_port());
        let mut tool = tool(&database)
            .env("CLICKHOUSE_URL", proxy.url())
            .env("MAX_RETRIES", "0");
        for skipped in [0, 0, 0] {
            let cut = Fault::once("INSERT INTO", Place::ResponseByte(0), Action::Cut);
            let cut = proxy.arm(cut.skip(skipped));
            let outcome: Outcome = tool.run();
            outcome.assert_one_error(1, &["continue with --resume"]);
            assert_eq!(cut.count(), 1);
            tool = with_resume(tool);
        }
        tool.run().assert_code(0);
        assert_holds(&database, "history");
    });
}

#[test]
fn a_second_run_from_another_state_directory_writes_only_what_is_missing() {
    let database = month("second_run");
    let first = tool(&database);
    first.run().assert_code(0);
    assert_holds(&database, "history");
    let all = count(&database, "history");

    let second = tool(&database);
    second.run().assert_code(0);
    assert_holds(&database, "history");
    let written =
        |tool: &Tool| reported(tool, "events_inserted") + reported(tool, "root_spans_inserted");
    assert_eq!(written(&second), 0);
    assert_eq!(reported(&second, "already_there"), all);

    let missing = "cityHash64(span_id) % 50 = 0";
    execute(&database, "TRUNCATE TABLE events_full");
    execute(&database, "TRUNCATE TABLE events_core");
    execute(
        &database,
        &format!("INSERT INTO events_full SELECT * FROM history WHERE NOT ({missing})"),
    );
    let third = tool(&database);
    third.run().assert_code(0);
    assert_holds(&database, "history");
    let missing = count(&database, &format!("history WHERE {missing}"));
    assert!(missing > 100, "{missing}");
    assert_eq!(written(&third), missing);
    assert_eq!(reported(&third, "already_there"), all - missing);
}

#[test]
fn a_restart_says_how_many_rows_wait_to_be_merged_and_how_to_merge_them() {
    let database = month("restarted");
    let tool = tool(&database);
    tool.run().assert_code(0);
    assert!(tool.report()["rows_to_merge"].is_null() || reported(&tool, "rows_to_merge") == 0);
    let all = count(&database, "history");
    let tool = tool.arg("--restart");
    let outcome = tool.run();
    outcome.assert_code(0);
    assert_eq!(count(&database, "events_full"), 2 * all);
    assert_eq!(reported(&tool, "rows_to_merge"), all);
    let said = format!("{}\n{}", outcome.stdout, outcome.stderr);
    assert!(said.contains("--optimize"), "{said}");
    let digits: String = said
        .chars()
        .filter(|c| c.is_ascii_digit() || *c == '\n')
        .collect();
    assert!(digits.contains(&all.to_string()), "{all} in {said}");
    assert_equal(&database, "history", "events_full FINAL");
}

#[test]
fn a_restart_that_failed_before_events_core_had_its_rows_leaves_nothing_old_there() {
    let database = month("restart_failed");
    let first = tool(&database);
    first.run().assert_code(0);
    // The observations stay as they are: so do the keys and the versions of their events.
    execute(
        &database,
        "INSERT INTO traces SELECT t.* REPLACE (concat(t.name, ' changed') AS name, \
             t.event_ts + INTERVAL 1 SECOND AS event_ts) \
         FROM (SELECT * FROM traces ORDER BY event_ts DESC LIMIT 1 BY project_id, id) AS t \
         WHERE t.is_deleted = 0",
    );
    execute(
        &database,
        "ALTER TABLE events_core ADD CONSTRAINT old CHECK trace_name NOT LIKE '% changed'",
    );
    let tool = first.arg("--restart").env("MAX_RETRIES", "0");
    tool.run().assert_one_error(1, &["continue with --resume"]);
    let ahead = "events_full WHERE trace_name LIKE '% changed'";
    assert!(count(&database, ahead) > 0, "nothing got to events_full");
    execute(&database, "ALTER TABLE events_core DROP CONSTRAINT old");
    tool.without_arg("--restart")
        .arg("--resume")
        .run()
        .assert_code(0);
    for table in ["events_full", "events_core"] {
        execute(&database, &format!("SYSTEM START MERGES {table}"));
        execute(&database, &format!("OPTIMIZE TABLE {table} FINAL"));
    }
    execute(&database, "DROP TABLE history");
    live::fill_history(&database, SAMPLE_PARTITION, "history");
    assert_holds(&database, "history");
}

#[test]
fn two_runs_of_a_month_with_different_state_directories_are_not_at_work_at_once() {
    let database = month("two_at_once");
    slow_down(&database, 0.1);
    let first = unhurried_tool(&database);
    let mut run = first.spawn();
    wait_until(&mut run, "the first event", || {
        count(&database, "events_core") > 0
    });
    tool(&database)
        .run()
        .assert_one_error(1, &["another events-backfill", "202406"]);
    speed_up(&database);
    run.wait().assert_code(0);
    assert_holds(&database, "history");
}

// -------------------------------------------------------------------------------------------------
// Traces that change meanwhile
// -------------------------------------------------------------------------------------------------

/// Un-publishes most public traces and deletes some of all, as Langfuse does: with a new version of
/// the trace, and an update of those events that are there.
fn unpublish(database: &Database) {
    let latest = "SELECT * FROM traces ORDER BY event_ts DESC LIMIT 1 BY project_id, id";
    let is_changed = "t.is_deleted = 0 AND (t.public OR cityHash64(t.id) % 8 = 0)";
    execute(
        database,
        &format!(
            "CREATE TABLE changed ENGINE = MergeTree ORDER BY tuple() AS \
             SELECT t.* REPLACE (false AS public, concat(t.name, ' changed') AS name, \
                 now64(3) AS event_ts, cityHash64(t.id) % 8 = 0 AS is_deleted) \
             FROM ({latest}) AS t WHERE {is_changed}"
        ),
    );
    execute(database, "INSERT INTO traces SELECT * FROM changed");
    for table in ["events_full", "events_core"] {
        execute(
            database,
            &format!(
                "UPDATE {table} SET public = false WHERE public = true AND (project_id, trace_id) \
                     IN (SELECT project_id, id FROM changed) SETTINGS enable_lightweight_update = 1"
            ),
        );
    }
}

/// Remembers which events are there.
fn remember(database: &Database, table: &str) {
    execute(
        database,
        &format!(
            "CREATE TABLE {table} ENGINE = MergeTree ORDER BY tuple() AS SELECT {KEY} FROM events_full"
        ),
    );
}

/// Panics unless what was written since `before` was remembered is what the sources say now.
#[track_caller]
fn assert_written_since(database: &Database, before: &str) {
    execute(database, "DROP TABLE history");
    live::fill_history(database, SAMPLE_PARTITION, "history");
    let columns = live::insertable_columns(database);
    for (table, source) in [("now_wanted", "history"), ("now_written", "events_full")] {
        live::create_table(database, table);
        execute(
            database,
            &format!(
                "INSERT INTO {table} ({columns}) SELECT {columns} FROM {source} \
                 WHERE ({KEY}) NOT IN (SELECT {KEY} FROM {before})"
            ),
        );
    }
    let public = "(project_id, trace_id) IN (SELECT project_id, id FROM changed) AND public";
    let since = format!("({KEY}) NOT IN (SELECT {KEY} FROM {before})");
    for table in ["events_full", "events_core"] {
        let again = count(database, &format!("{table} WHERE {public} AND {since}"));
        assert_eq!(again, 0, "events of {table} that are public again");
    }
    let changed = count(database, "now_wanted WHERE trace_name LIKE '% changed'");
    assert!(changed > 50, "{changed} events of changed traces");
    assert_equal(database, "now_wanted", "now_written");
}

#[test]
fn a_trace_unpublished_or_deleted_before_a_run_is_resumed_is_not_written_as_it_was() {
    let database = month("unpublished");
    let tool = interrupt_after_first_event(&database, tool(&database));
    remember(&database, "before");
    unpublish(&database);
    let changed = count(&database, "changed");
    let tool = with_resume(tool);
    tool.run().assert_code(0);
    assert_written_since(&database, "before");
    // A version that came at the same time as the load may be loaded again too.
    let reloaded = reported(&tool, "traces_reloaded");
    assert!(reloaded >= changed, "{reloaded} of {changed}");
    assert_changed_after_writing(&database, &tool);
    // Those that were there stay as Langfuse has left them.
    let public = "events_core WHERE public \
         AND (project_id, trace_id) IN (SELECT project_id, id FROM changed)";
    assert_eq!(count(&database, public), 0);
}

/// Panics unless the report counts the traces that changed after events of theirs were written.
#[track_caller]
fn assert_changed_after_writing(database: &Database, tool: &Tool) {
    let stale = ask_number(
        database,
        "SELECT uniqExact(project_id, id) FROM changed \
         WHERE (project_id, id) IN (SELECT project_id, trace_id FROM before)",
    );
    assert!(stale > 0, "no trace of those written has changed");
    let changed = count(database, "changed");
    let counted = reported(tool, "traces_changed_after_writing");
    assert!(
        counted > 0 && counted <= changed,
        "{counted} reported; {stale} of {changed} had events"
    );
}

#[test]
fn a_long_run_notices_that_a_trace_was_unpublished_or_deleted() {
    let database = month("unpublished_meanwhile");
    slow_down(&database, 0.8);
    let tool = unhurried_tool(&database).env("RELOAD_SECONDS", "1");
    let mut run = tool.spawn();
    wait_until(&mut run, "the first event", || {
        count(&database, "events_core") > 0
    });
    unpublish(&database);
    // Until traces are loaded again, and what was read before has been written.
    let under_way = ask(
        &database,
        &format!(
            "SELECT query_id FROM system.processes WHERE {OURS} AND query_kind = 'Insert' \
             AND query LIKE '%{}%'",
            database.name
        ),
    );
    thread::sleep(Duration::from_secs(5));
    wait_until(
        &mut run,
        "the end of the inserts that were under way",
        || {
            let queries = under_way.replace('\n', "', '");
            count(
                &database,
                &format!("system.processes WHERE query_id IN ('{queries}')"),
            ) == 0
        },
    );
    remember(&database, "before");
    let left = count(&database, "history") - count(&database, "before");
    assert!(run.is_running() && left > 1_500, "{left} events are left");
    speed_up(&database);
    run.wait().assert_code(0);
    assert_written_since(&database, "before");
    assert!(reported(&tool, "traces_reloaded") >= count(&database, "changed"));
    assert_changed_after_writing(&database, &tool);
}

// -------------------------------------------------------------------------------------------------
// Versions of observations
// -------------------------------------------------------------------------------------------------

/// Where a version of an observation may lie: its type and its start time.
type At = (&'static str, &'static str);

const FIRST: At = ("SPAN", "2024-06-10 10:00:00.250");

/// What may change between two versions.
const CHANGES: [(&str, At); 7] = [
    ("nothing", FIRST),
    ("type", ("GENERATION", FIRST.1)),
    ("time of day", ("SPAN", "2024-06-10 18:30:00.500")),
    ("day", ("SPAN", "2024-06-12 10:00:00.250")),
    ("type and day", ("EVENT", "2024-06-08 10:00:00.250")),
    ("month", ("SPAN", "2024-07-02 10:00:00.250")),
    ("month before", ("TOOL", "2024-05-31 23:59:59.999")),
];

/// Where no other version lies.
const ELSEWHERE: At = ("AGENT", "2024-07-15 00:00:00.000");

const MONTHS: [&str; 3] = ["202405", "202406", "202407"];

/// All orders of so many things.
fn orders(length: usize) -> Vec<Vec<usize>> {
    match length {
        0 => vec![Vec::new()],
        _ => orders(length - 1)
            .into_iter()
            .flat_map(|order| {
                (0..length).map(move |place| {
                    let mut longer = order.clone();
                    longer.insert(place, length - 1);
                    longer
                })
            })
            .collect(),
    }
}

/// Histories of one observation, from the first version to the last: a name, and for each version
/// where it lies and whether it is a deletion.
fn histories() -> Vec<(String, Vec<(At, bool)>)> {
    let mut histories = Vec::new();
    for (change, second) in CHANGES {
        let changed = vec![(FIRST, false), (second, false)];
        histories.push((change.to_owned(), changed.clone()));
        let back = [changed.clone(), vec![(FIRST, false)]].concat();
        histories.push((format!("{change} and back"), back));
        for (where_to, place) in [
            ("where it began", FIRST),
            ("where it went", second),
            ("elsewhere", ELSEWHERE),
        ] {
            let deleted = [changed.clone(), vec![(place, true)]].concat();
            histories.push((format!("{change}, deleted {where_to}"), deleted.clone()));
            // A deletion of the first version only, and of something that comes again.
            histories.push((
                format!("{change} after a deletion {where_to}"),
                vec![(FIRST, false), (place, true), (second, false)],
            ));
        }
    }
    histories
}

/// Observations with each of [`histories`], their versions arriving in every order, each arrival a
/// part of its own.
fn insert_versions(database: &Database) {
    let mut arrivals = vec![Vec::new(); 3];
    for (number, (name, versions)) in histories().into_iter().enumerate() {
        for (order_number, order) in orders(versions.len()).into_iter().enumerate() {
            for (arrival, version) in order.into_iter().enumerate() {
                let ((kind, time), is_deleted) = versions[version];
                let seconds = 1 + version;
                arrivals[arrival].push(format!(
                    "('{number} {order_number}', 'trace {}', 'project', '{kind}', '{time}', \
                      '{name}: version {version}', \
                      toDateTime64('2024-08-01 00:00:00', 3) + {seconds}, {is_deleted})",
                    number % 5
                ));
            }
        }
    }
    for rows in arrivals {
        execute(
            database,
            &format!(
                "INSERT INTO observations (id, trace_id, project_id, type, start_time, name, \
                     event_ts, is_deleted) VALUES {}",
                rows.join(", ")
            ),
        );
    }
    execute(
        database,
        "INSERT INTO traces (id, project_id, timestamp, name, user_id, event_ts, is_deleted) \
         SELECT concat('trace ', toString(number)), 'project', \
             toDateTime64('2024-06-10 10:00:00', 3), 'trace', 'user', '2024-06-10 10:00:01', 0 \
         FROM numbers(4)",
    );
}

/// What all months together must hold.
fn expect_versions(database: &Database) {
    live::create_table(database, "expected");
    for month in MONTHS {
        Specification::current().add(database, month, "expected");
    }
    let living = ask_number(
        database,
        "SELECT count() FROM (SELECT * FROM observations ORDER BY event_ts DESC \
             LIMIT 1 BY project_id, trace_id, id) WHERE is_deleted = 0",
    );
    assert_eq!(count(database, "expected"), living);
}

/// Rows that a reader with FINAL sees of a month beside those that count.
fn superseded(database: &Database, month: &str) -> u64 {
    let visible = count(
        database,
        &format!("observations FINAL WHERE _partition_id = '{month}'"),
    );
    let counting = count(
        database,
        &format!("expected WHERE toYYYYMM(start_time) = {month}"),
    );
    visible - counting
}

fn plain_tool_for(database: &Database, month: &str) -> Tool {
    Tool::new(database).args(["--partition", month, "--no-root-spans", "--no-experiments"])
}

#[test]
fn an_observation_is_one_event_whatever_its_versions_were_and_however_they_came() {
    let database = empty(Server::shared(), "versions");
    insert_versions(&database);
    expect_versions(&database);
    let living = count(&database, "expected");
    assert!(living > 100, "{living} observations");
    for month in MONTHS {
        assert!(superseded(&database, month) > 10, "{month}");
        let expected = format!("expected WHERE toYYYYMM(start_time) = {month}");
        assert!(count(&database, &expected) > 5, "{month}");
    }
    for order in orders(MONTHS.len()) {
        for table in ["events_full", "events_core"] {
            execute(&database, &format!("TRUNCATE TABLE {table}"));
        }
        for month in order.into_iter().map(|place| MONTHS[place]) {
            let tool = plain_tool_for(&database, month);
            tool.run().assert_code(0);
            assert_eq!(
                reported(&tool, "observations_superseded"),
                superseded(&database, month),
                "{month}"
            );
        }
        assert_holds(&database, "expected");
    }
}

#[test]
fn an_observation_is_one_event_after_clickhouse_has_merged_its_versions() {
    let database = empty(Server::shared(), "merged_versions");
    insert_versions(&database);
    let name = format!("`{}`.observations", database.name);
    execute(&database, &format!("SYSTEM START MERGES {name}"));
    execute(&database, "OPTIMIZE TABLE observations FINAL");
    expect_versions(&database);
    for month in MONTHS {
        plain_tool_for(&database, month).run().assert_code(0);
    }
    assert_holds(&database, "expected");
}

/// One project, two days, many granules; one observation in so many changed its type, its time or
/// its day, was deleted after that, or moved to another month.
fn busy_days(database: &Database) {
    let columns = "id, trace_id, project_id, type, start_time, name, input, event_ts, is_deleted";
    execute(
        database,
        &format!(
            "INSERT INTO observations ({columns}) \
             SELECT concat('observation-', hex(cityHash64(number))), \
                 concat('trace-', toString(number % 999)), 'project', \
                 ['SPAN', 'GENERATION', 'EVENT'][1 + number % 3] AS type, \
                 toDateTime64('2024-06-11 00:00:00', 3) + number % 172800, 'first', 'input', \
                 toDateTime64('2024-06-20 00:00:00', 3), 0 \
             FROM numbers(30000)"
        ),
    );
    let first = "FROM observations AS o WHERE o.name = 'first' AND cityHash64(o.id)";
    for (name, bucket, kind, time, is_deleted) in [
        ("another type", 0, "'TOOL'", "o.start_time", 0),
        ("another time", 1, "o.type", "toStartOfDay(o.start_time)", 0),
        (
            "another day",
            2,
            "o.type",
            "toDateTime64('2024-06-11 12:00:00', 3)",
            0,
        ),
        (
            "another month",
            3,
            "o.type",
            "o.start_time + INTERVAL 1 MONTH",
            0,
        ),
        ("deleted as another type", 4, "'TOOL'", "o.start_time", 1),
        (
            "deleted on another day",
            5,
            "o.type",
            "o.start_time + INTERVAL 3 DAY",
            1,
        ),
        (
            "deleted in another month",
            6,
            "o.type",
            "o.start_time - INTERVAL 1 MONTH",
            1,
        ),
    ] {
        execute(
            database,
            &format!(
                "INSERT INTO observations ({columns}) SELECT o.id, o.trace_id, o.project_id, \
                     {kind}, {time}, '{name}', o.input, o.event_ts + INTERVAL 1 HOUR, {is_deleted} \
                 {first} % 40 = {bucket}"
            ),
        );
    }
    // From the month before, where the older version stays.
    execute(
        database,
        &format!(
            "INSERT INTO observations ({columns}) SELECT o.id, o.trace_id, o.project_id, o.type, \
                 o.start_time - INTERVAL 1 MONTH, 'older', o.input, o.event_ts - INTERVAL 1 HOUR, 0 \
             {first} % 40 = 7"
        ),
    );
}

#[test]
fn two_busy_days_of_one_project_have_one_event_for_each_observation() {
    let database = empty(Server::shared(), "busy_days");
    busy_days(&database);
    expect_versions(&database);
    for month in MONTHS {
        let tool = plain_tool_for(&database, month).args(["--segment-rows", "500"]);
        tool.run().assert_code(0);
        let expected = format!("expected WHERE toYYYYMM(start_time) = {month}");
        assert_eq!(
            reported(&tool, "events_inserted"),
            count(&database, &expected)
        );
        assert_eq!(
            reported(&tool, "observations_superseded"),
            superseded(&database, month),
            "{month}"
        );
        if month == SAMPLE_PARTITION {
            let segments = reported(&tool, "segments_total");
            println!("{segments} segments");
        }
    }
    assert_holds(&database, "expected");
}

#[test]
fn two_busy_days_of_one_project_that_are_full_are_not_written_again() {
    let database = empty(Server::shared(), "busy_and_full");
    busy_days(&database);
    expect_versions(&database);
    for _ in 0..2 {
        for month in MONTHS {
            let tool = plain_tool_for(&database, month).args(["--segment-rows", "500"]);
            tool.run().assert_code(0);
        }
    }
    assert_holds(&database, "expected");
}
