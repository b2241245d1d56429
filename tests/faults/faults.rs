//! Whatever happens on the way between the program and ClickHouse, the result is right, or there is
//! none and the program says why and how to go on.
//!
//! Everything goes through a proxy that does to the connections what networks do, to a real server.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::differential::{
    Specification, ask, ask_number, assert_complete, drop_indexes, execute, keep_versions_apart,
};
use crate::support::proxy::{Action, FOREVER, Fault, Place, Proxy};
use crate::support::{Database, Options, Outcome, Running, SAMPLE_PARTITION, Server, TESTER, Tool};

/// Enough for several segments, the least of which has 49,152 rows.
const OBSERVATIONS: u64 = 120_000;

/// Rows of a part.
const PART_ROWS: u64 = 4_000;

/// Random truncations and corruptions of one test; EVENTS_BACKFILL_CUTS sets another number.
const CUTS: usize = 15;

/// What tells the requests apart: a part of their SQL.
mod request {
    /// Which tables and columns there are.
    pub const TABLE: &str = "FROM system.tables WHERE database";
    pub const COLUMNS: &str = "FROM system.columns";
    /// Whether the columns can be read.
    pub const PROBE: &str = " LIMIT 0";
    /// How large the partition is.
    pub const PARTS: &str = "FROM system.parts ";
    /// The primary index, of which the plan is made.
    pub const PLAN: &str = "mergeTreeIndex(";
    /// The traces of one day.
    pub const TRACES: &str = " AS t WHERE t._partition_id";
    /// The observations of one segment.
    pub const OBSERVATIONS: &str = " AS o FINAL ARRAY JOIN";
    /// The events of one segment.
    pub const INSERT: &str = "INSERT INTO";
}

/// How long ClickHouse waits for a client that does not take its answer: its default.
const HTTP_SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections that break make the embedded ClickHouse abort now and then (three times in forty runs
/// of these tests, with no word about it). A server under supervision is started again, and so is
/// this one; but then the faults of a test are not the only ones.
fn unless_clickhouse_crashes(test: impl Fn()) {
    server().unless_it_crashes(test);
}

/// The server that all of these tests use, and no others: see [`unless_clickhouse_crashes`].
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(Options::default()))
}

/// Sources that nobody changes, the table `expected`, and the table `plain_events` to copy targets
/// from: events without indexes over texts, which take most of the time of an insert.
fn month() -> &'static Database<'static> {
    static MONTH: OnceLock<Database<'static>> = OnceLock::new();
    MONTH.get_or_init(|| {
        let database = server().sample_month("faults", OBSERVATIONS);
        prepare(&database);
        database
    })
}

fn prepare(database: &Database) {
    // Few parts, so that segments may be short.
    execute(database, "OPTIMIZE TABLE observations FINAL");
    Specification::current().fill(database, SAMPLE_PARTITION, "events_full", "expected");
    execute(database, "CREATE TABLE plain_events AS events_full");
    drop_indexes(database, "plain_events");
}

/// A backfill through a proxy of its own, into a table of its own.
struct Backfill {
    database: &'static Database<'static>,
    target: String,
    proxy: Proxy,
    tool: Tool,
}

/// One segment at a time, in small parts, so that it is known what comes after what.
fn backfill(database: &'static Database<'static>, target: &str) -> Backfill {
    // A test may run again.
    static BACKFILLS: AtomicU32 = AtomicU32::new(0);
    let number = BACKFILLS.fetch_add(1, Ordering::Relaxed);
    let target = format!("{target}_{number}");
    execute(database, &format!("CREATE TABLE {target} AS plain_events"));
    keep_versions_apart(database, &[&target]);
    let proxy = Proxy::start(database.server.http_port());
    let tool = Tool::new(database)
        .env("CLICKHOUSE_URL", proxy.url())
        .args(["--partition", SAMPLE_PARTITION, "--target-table", &target])
        .args(["--segment-rows", "50000", "--concurrency", "1"])
        .args(["--batch-size", &PART_ROWS.to_string()]);
    Backfill {
        database,
        target,
        proxy,
        tool,
    }
}

impl Backfill {
    fn args<const N: usize>(mut self, arguments: [&str; N]) -> Backfill {
        self.tool = self.tool.args(arguments);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Backfill {
        self.tool = self.tool.env(name, value);
        self
    }

    /// See [`Fault::once`].
    fn arm(&self, request: &'static str, place: Place, action: Action) -> Arc<Fault> {
        self.proxy.arm(Fault::once(request, place, action))
    }

    /// Goes on with an unfinished run.
    fn resume(mut self) -> (Backfill, Outcome) {
        self.tool = self.tool.arg("--resume");
        let outcome = self.tool.run();
        self.tool = self.tool.without_arg("--resume");
        (self, outcome)
    }

    /// A number in the report of the last run.
    #[track_caller]
    fn reported(&self, field: &str) -> u64 {
        let report = self.tool.report();
        report[field]
            .as_u64()
            .unwrap_or_else(|| panic!("{field} is not a number in {report}"))
    }

    /// The run has come to a good end, after as many retries as there were faults.
    #[track_caller]
    fn assert_survived(&self, outcome: &Outcome, faults: u64) {
        outcome.assert_code(0);
        assert_eq!(self.reported("retries"), faults, "{}", outcome.stderr);
        assert_eq!(self.reported("errors"), 0);
        assert_eq!(
            self.reported("segments_done"),
            self.reported("segments_total")
        );
        assert_complete(self.database, &self.target);
        println!(
            "{}: {faults} faults survived, {} rows sent again",
            self.target,
            self.rows_sent_again()
        );
    }

    /// Rows that were written more than once.
    fn rows_sent_again(&self) -> u64 {
        let count =
            |table: &str| ask_number(self.database, &format!("SELECT count() FROM {table}"));
        count(&self.target) - count(&format!("{} FINAL", self.target))
    }

    /// How often the observations of a segment were asked for.
    fn segments_read(&self) -> u64 {
        self.proxy.exchanges(request::OBSERVATIONS).len() as u64
    }
}

/// Each of the faults has happened exactly so often; gives their sum.
#[track_caller]
fn assert_happened(faults: &[Arc<Fault>], each: u64) -> u64 {
    for fault in faults {
        assert_eq!(fault.count(), each, "{fault:?}");
    }
    faults.len() as u64 * each
}

/// Waits until a fault has begun, while the program runs.
#[track_caller]
fn wait_for(fault: &Fault, run: &mut Running) {
    let started = Instant::now();
    while fault.count() == 0 {
        assert!(run.is_running(), "the run ended before {fault:?}");
        assert!(started.elapsed() < Duration::from_secs(60), "{fault:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

// -------------------------------------------------------------------------------------------------
// Cuts
// -------------------------------------------------------------------------------------------------

/// Cuts at places in requests of one kind, and how many requests of that kind to leave out before.
fn cuts<const N: usize>(
    backfill: &Backfill,
    request: &'static str,
    places: [(u64, Place); N],
) -> [Arc<Fault>; N] {
    places.map(|(skipped, place)| {
        let cut = Fault::once(request, place, Action::Cut);
        backfill.proxy.arm(cut.skip(skipped))
    })
}

#[test]
fn a_connection_cut_while_traces_are_loaded_or_events_sent_is_survived() {
    unless_clickhouse_crashes(|| {
        let backfill = backfill(month(), "cut");
        // What was cut is asked for again at once. So every third request is for new days, of which
        // there are eight in one, and the first five inserts are attempts at the first segment.
        let days = [
            (0, Place::RequestByte(0)),
            (1, Place::RequestBodyByte(20)),
            (3, Place::ResponseByte(0)),
            (4, Place::ResponseByte(40)),
            (6, Place::ResponseBodyByte(10_000)),
            (7, Place::ResponseBodyByte(150_000)),
        ];
        let inserts = [
            (0, Place::RequestByte(0)),
            (1, Place::RequestBodyByte(0)),
            // Some parts are written by then.
            (2, Place::RequestBodyByte(20_000_000)),
            (3, Place::RequestBodyByte(500_000)),
            // Everything was sent and written, and the answer never comes.
            (4, Place::ResponseByte(0)),
            // Of the second segment.
            (5, Place::ResponseByte(60)),
        ];
        let loading = cuts(&backfill, request::TRACES, days);
        let inserting = cuts(&backfill, request::INSERT, inserts);
        let outcome = backfill.tool.run();
        let repeated = assert_happened(&inserting, 1);
        let happened = assert_happened(&loading, 1) + repeated;
        backfill.assert_survived(&outcome, happened);
        // After each of them the segment was read again, and nothing of it was sent again.
        assert_eq!(backfill.rows_sent_again(), 0);
        assert_eq!(
            backfill.segments_read(),
            backfill.reported("segments_total") + repeated
        );
    });
}

#[test]
fn a_connection_cut_while_observations_are_read_is_survived() {
    unless_clickhouse_crashes(|| {
        let backfill = backfill(month(), "cut_reading");
        // Two cuts in the first segment, and two in the second.
        let places = [
            (0, Place::RequestBodyByte(20)),
            (1, Place::ResponseBodyByte(60_000_000)),
            (3, Place::ResponseByte(0)),
            (4, Place::ResponseBodyByte(100_000)),
        ];
        let cuts = cuts(&backfill, request::OBSERVATIONS, places);
        let outcome = backfill.tool.run();
        let happened = assert_happened(&cuts, 1);
        backfill.assert_survived(&outcome, happened);
        assert_eq!(backfill.rows_sent_again(), 0);
        assert_eq!(
            backfill.segments_read(),
            backfill.reported("segments_total") + happened
        );
    });
}

#[test]
fn a_connection_cut_while_tables_are_looked_at_or_the_work_is_planned_is_survived() {
    unless_clickhouse_crashes(|| {
        let backfill = backfill(month(), "cut_planning");
        let cuts = [
            (request::TABLE, Place::ResponseByte(0)),
            (request::COLUMNS, Place::ResponseBodyByte(100)),
            (request::PROBE, Place::RequestBodyByte(20)),
            (request::PARTS, Place::ResponseByte(0)),
            (request::PLAN, Place::RequestBodyByte(20)),
            (request::PLAN, Place::ResponseBodyByte(100)),
        ]
        .map(|(request, place)| backfill.arm(request, place, Action::Cut));
        let outcome = backfill.tool.run();
        let happened = assert_happened(&cuts, 1);
        backfill.assert_survived(&outcome, happened);
    });
}

// -------------------------------------------------------------------------------------------------
// Truncated and corrupted bytes
// -------------------------------------------------------------------------------------------------

/// How many bytes the responses have: that of each day of traces, and that of each segment.
type Sizes = (Vec<u64>, Vec<u64>);

fn compressed_sizes() -> &'static Sizes {
    static SIZES: OnceLock<Sizes> = OnceLock::new();
    SIZES.get_or_init(|| response_sizes("lz4"))
}

fn response_sizes(compression: &str) -> Sizes {
    let undisturbed = backfill(month(), &format!("sizes_{compression}")).args([
        "--dry-run",
        "--compression",
        compression,
    ]);
    undisturbed.tool.run().assert_code(0);
    assert_eq!(undisturbed.reported("retries"), 0);
    let sizes = |request: &str| {
        let exchanges = undisturbed.proxy.exchanges(request);
        exchanges.iter().map(|e| e.response_bytes()).collect()
    };
    (sizes(request::TRACES), sizes(request::OBSERVATIONS))
}

/// How many truncations or corruptions there are to be.
fn wanted_faults() -> usize {
    let wanted = std::env::var("EVENTS_BACKFILL_CUTS").ok();
    wanted.and_then(|cuts| cuts.parse().ok()).unwrap_or(CUTS)
}

/// A source of random places, which are printed by their seed.
fn random(what: &str) -> fastrand::Rng {
    let seed = fastrand::u64(..);
    println!("{what}: seed {seed}");
    fastrand::Rng::with_seed(seed)
}

/// Faults at random bytes of the responses of one run: twice for each segment, and for as many days
/// of traces as are wanted besides. What fails is asked for again at once, which tells how many
/// requests to skip.
fn random_faults(
    backfill: &Backfill,
    sizes: &Sizes,
    action: Action,
    wanted: usize,
    random: &mut fastrand::Rng,
) -> Vec<Arc<Fault>> {
    let (days, segments) = sizes;
    let twice = (0..).zip(segments).flat_map(|(segment, size)| {
        let fault = move |n: u64| (request::OBSERVATIONS, 3 * segment + n, *size);
        [fault(0), fault(1)]
    });
    let once = (0..)
        .zip(days)
        .map(|(day, size)| (request::TRACES, 2 * day, *size));
    let chosen = twice.chain(once).take(wanted);
    chosen
        .map(|(request, skipped, size)| {
            let place = Place::ResponseByte(random.u64(..size));
            let fault = Fault::once(request, place, action);
            backfill.proxy.arm(fault.skip(skipped))
        })
        .collect()
}

fn responses_truncated_at_random_bytes_are_read_again(compression: &str, sizes: &Sizes) {
    let mut random = random(&format!("responses truncated, compression {compression}"));
    let mut truncated = 0;
    let mut again = 0;
    for round in 0.. {
        let wanted = wanted_faults().saturating_sub(truncated);
        if wanted == 0 {
            break;
        }
        let backfill = backfill(month(), &format!("truncated_{compression}_{round}"))
            .args(["--compression", compression]);
        let faults = random_faults(&backfill, sizes, Action::Truncate, wanted, &mut random);
        let outcome = backfill.tool.run();
        let happened: u64 = faults.iter().map(|fault| fault.count()).sum();
        // The last bytes of a response may be missing: it tells the time it took in its head.
        assert!(happened + 2 >= faults.len() as u64, "{faults:?}");
        backfill.assert_survived(&outcome, happened);
        truncated += faults.len();
        again += backfill.rows_sent_again();
        execute(
            backfill.database,
            &format!("DROP TABLE {}", backfill.target),
        );
    }
    println!(
        "compression {compression}: {truncated} truncations survived, {again} rows sent again"
    );
}

#[test]
fn responses_truncated_at_random_bytes_never_make_a_wrong_result() {
    unless_clickhouse_crashes(|| {
        responses_truncated_at_random_bytes_are_read_again("none", &response_sizes("none"));
    });
}

#[test]
fn compressed_responses_truncated_at_random_bytes_never_make_a_wrong_result() {
    unless_clickhouse_crashes(|| {
        responses_truncated_at_random_bytes_are_read_again("lz4", compressed_sizes());
    });
}

/// Runs to a good end, where every other end is an error that says how to go on. Gives the errors.
fn run_and_resume(mut backfill: Backfill, most_errors: usize) -> (Backfill, Vec<String>) {
    let mut errors = Vec::new();
    let mut outcome = backfill.tool.run();
    while outcome.code != Some(0) {
        outcome
            .assert_code(1)
            .assert_stderr_contains("continue with --resume");
        let last = outcome.stderr.lines().last().unwrap_or_default();
        errors.push(last.to_owned());
        assert!(errors.len() <= most_errors, "{errors:#?}");
        (backfill, outcome) = backfill.resume();
    }
    (backfill, errors)
}

// Only compressed inserts are looked at, since their LZ4 blocks carry checksums. Without compression
// there is nothing in HTTP or in the Native format that a flipped bit in a text would contradict;
// there it is for TCP and TLS to notice it, as they do.

/// Fewer than the compressed events of a segment have.
const COMPRESSED_BYTES: u64 = 5_000_000;

#[test]
fn a_corrupted_byte_of_a_compressed_insert_never_makes_a_wrong_result() {
    unless_clickhouse_crashes(|| {
        let mut random = random("inserts corrupted");
        // Otherwise the waits between tries would make most of the test.
        let backfill = backfill(month(), "corrupted_inserts")
            .args(["--compression", "lz4"])
            .env("MAX_RETRIES", "1");
        // Only bodies: a wrong byte in a head is another request, which nothing can tell.
        let faults: Vec<_> = (0..wanted_faults().min(20) as u64)
            .map(|insert| {
                let place = Place::RequestBodyByte(random.u64(..COMPRESSED_BYTES));
                let fault = Fault::once(request::INSERT, place, Action::Corrupt);
                backfill.proxy.arm(fault.skip(insert))
            })
            .collect();
        let (backfill, errors) = run_and_resume(backfill, faults.len());
        let happened = assert_happened(&faults, 1);
        println!(
            "{happened} inserts corrupted: {} ended the run, {errors:#?}",
            errors.len()
        );
        assert_complete(backfill.database, &backfill.target);
    });
}

// -------------------------------------------------------------------------------------------------
// Exceptions
// -------------------------------------------------------------------------------------------------

/// A month whose rows are large and lie on one day, so that ClickHouse is still busy with a response
/// whose beginning has arrived, however it is compressed.
fn large_day() -> &'static Database<'static> {
    static LARGE_DAY: OnceLock<Database<'static>> = OnceLock::new();
    LARGE_DAY.get_or_init(|| {
        let database = server().database("large_day");
        database.load_schema();
        execute(
            &database,
            "INSERT INTO traces (id, timestamp, project_id, event_ts, name, metadata) \
             SELECT 'trace-' || number, '2024-06-03 10:00:00', 'project', '2024-06-03 10:00:01', \
             'name ' || number, map('text', randomPrintableASCII(1000)) FROM numbers(30000)",
        );
        execute(
            &database,
            "INSERT INTO observations (id, trace_id, start_time, project_id, type, event_ts, input) \
             SELECT 'observation-' || number, 'trace-' || number, '2024-06-03 10:00:00', 'project', \
             'SPAN', '2024-06-03 10:00:01', randomPrintableASCII(1000) FROM numbers(30000)",
        );
        prepare(&database);
        database
    })
}

/// A backfill by the user [`TESTER`], whose queries are killed while ClickHouse sends what they
/// yield: first that of the traces, and then that of the observations. The status 200 has arrived
/// long before.
fn run_and_kill_its_queries(target: &str, compression: &str) -> (Backfill, Outcome) {
    let backfill = backfill(large_day(), target)
        .env("CLICKHOUSE_USER", TESTER.0)
        .env("CLICKHOUSE_PASSWORD", TESTER.1)
        .args(["--compression", compression]);
    let slowly = Action::Slow {
        bytes: 16 * 1024,
        pause: Duration::from_millis(20),
    };
    let requests = [request::TRACES, request::OBSERVATIONS];
    let slow =
        requests.map(|request| backfill.arm(request, Place::ResponseBodyByte(50_000), slowly));
    // What ClickHouse writes in front of its message, in the middle of the exception.
    let in_two = requests.map(|request| {
        let pause = Action::Stall(Duration::from_millis(200));
        backfill.arm(request, Place::ResponseText("DB::Exception"), pause)
    });
    let mut run = backfill.tool.spawn();
    for (request, slow) in requests.into_iter().zip(&slow) {
        wait_for(slow, &mut run);
        let kill = format!(
            "KILL QUERY WHERE user = '{}' AND position(query, '{request}') > 0",
            TESTER.0
        );
        let killed = ask(backfill.database, &kill);
        assert_eq!(killed.lines().count(), 1, "{killed}");
        // The rest of what was sent before, and then the exception.
        slow.lift();
    }
    let outcome = run.wait();
    if compression == "none" {
        assert_happened(&in_two, 1);
    }
    (backfill, outcome)
}

#[test]
fn a_response_that_ends_in_an_exception_after_status_200_is_asked_for_again() {
    unless_clickhouse_crashes(|| {
        let (backfill, outcome) = run_and_kill_its_queries("killed", "lz4");
        backfill.assert_survived(&outcome, 2);
        for killed in [
            "loading traces of 2024-06-01 to 2024-06-08: ",
            "segment 0: ",
        ] {
            outcome.assert_stderr_contains(&format!("{killed}ClickHouse answered with error 394"));
        }
    });
}

#[test]
fn an_exception_after_status_200_that_arrives_in_two_pieces_is_no_data() {
    unless_clickhouse_crashes(|| {
        let (backfill, outcome) = run_and_kill_its_queries("killed_in_two", "none");
        backfill.assert_survived(&outcome, 2);
    });
}

// -------------------------------------------------------------------------------------------------
// Stalls
// -------------------------------------------------------------------------------------------------

/// Longer than ClickHouse waits for a client that does not take its answer.
const LONG_STALL: Duration = HTTP_SEND_TIMEOUT.saturating_add(Duration::from_secs(4));

#[test]
fn an_insert_that_stands_for_longer_than_http_send_timeout_lets_no_read_break() {
    unless_clickhouse_crashes(|| {
        // Less than a segment fits into the program.
        let backfill = backfill(month(), "slow_insert").args(["--memory-limit", "192MiB"]);
        // As where a part takes long: ClickHouse does not wait in vain for the next bytes.
        let trickle = Action::Slow {
            bytes: 100,
            pause: Duration::from_secs(1),
        };
        let slow = backfill.arm(request::INSERT, Place::RequestBodyByte(10_000_000), trickle);
        let mut run = backfill.tool.spawn();
        wait_for(&slow, &mut run);
        thread::sleep(LONG_STALL);
        let reads = backfill.proxy.exchanges(request::OBSERVATIONS);
        let at_the_end_of_the_stall = reads[0].response_bytes();
        slow.lift();
        let outcome = run.wait();
        // Most of the response was yet to come, so ClickHouse had something to wait with.
        let after_it = reads[0].response_bytes() - at_the_end_of_the_stall;
        assert!(after_it > 10_000_000, "{after_it}: {}", outcome.stderr);
        // Nothing was read again: while the program waited, it read a little now and then.
        backfill.assert_survived(&outcome, 0);
        assert_eq!(
            backfill.segments_read(),
            backfill.reported("segments_total")
        );
        assert_eq!(backfill.rows_sent_again(), 0);
    });
}

#[test]
fn a_response_that_stalls_until_clickhouse_gives_up_is_asked_for_again() {
    unless_clickhouse_crashes(|| {
        let backfill = backfill(month(), "stalled_read");
        let stall = backfill.arm(
            request::OBSERVATIONS,
            Place::ResponseBodyByte(10_000_000),
            Action::Stall(LONG_STALL),
        );
        let outcome = backfill.tool.run();
        assert_eq!(stall.count(), 1);
        backfill.assert_survived(&outcome, 1);
    });
}

#[test]
fn sigterm_ends_a_run_whose_insert_hangs_within_15_seconds_and_it_can_be_resumed() {
    unless_clickhouse_crashes(|| {
        let backfill = backfill(month(), "hung_insert");
        let hang = backfill.proxy.arm(Fault::once(
            request::INSERT,
            Place::ResponseByte(0),
            Action::Stall(FOREVER),
        ));
        let mut run = backfill.tool.spawn();
        wait_for(&hang, &mut run);
        let asked = Instant::now();
        run.terminate();
        let outcome = run.wait();
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(15), "{took:?}");
        outcome
            .assert_code(143)
            .assert_stderr_contains("continue with --resume");
        let (backfill, outcome) = backfill.resume();
        backfill.assert_survived(&outcome, 0);
        assert_eq!(backfill.tool.report()["resumed"], true);
    });
}

#[test]
fn a_slow_network_changes_nothing() {
    unless_clickhouse_crashes(|| {
        let backfill = backfill(month(), "slow_network").args(["--compression", "lz4"]);
        let (bytes, pause) = (64 * 1024, Duration::from_millis(4));
        let slow = Action::Slow { bytes, pause };
        // An empty text is in every request.
        for place in [Place::RequestByte(0), Place::ResponseByte(0)] {
            backfill.proxy.arm(Fault::once("", place, slow).always());
        }
        let outcome = backfill.tool.run();
        backfill.assert_survived(&outcome, 0);
        let reads = backfill.proxy.exchanges(request::OBSERVATIONS);
        let pieces = reads.iter().map(|read| read.response_bytes()).sum::<u64>() / bytes as u64;
        assert!(outcome.duration > pause * u32::try_from(pieces).unwrap());
    });
}

// -------------------------------------------------------------------------------------------------
// Refusals
// -------------------------------------------------------------------------------------------------

const UNAVAILABLE: &str = "503 Service Unavailable";
const TOO_MANY: &str = "429 Too Many Requests";

/// The answer of a load balancer. The place does not matter.
fn refusal(request: &'static str, status: &'static str, close: bool) -> Fault {
    let answer = Action::Answer { status, close };
    Fault::once(request, Place::RequestByte(0), answer)
}

#[test]
fn answers_503_and_429_are_survived_wherever_they_come() {
    unless_clickhouse_crashes(|| {
        let backfill = backfill(month(), "refused");
        let mut refusals = Vec::new();
        for request in [request::TRACES, request::OBSERVATIONS, request::INSERT] {
            for (skipped, status, close) in [(0, UNAVAILABLE, true), (2, TOO_MANY, false)] {
                let refusal = refusal(request, status, close).skip(skipped);
                refusals.push(backfill.proxy.arm(refusal));
            }
        }
        let outcome = backfill.tool.run();
        let happened = assert_happened(&refusals, 1);
        backfill.assert_survived(&outcome, happened);
        assert_eq!(backfill.rows_sent_again(), 0);
    });
}

#[test]
fn refusals_that_never_end_end_the_run_with_a_clear_error_and_a_way_on() {
    unless_clickhouse_crashes(|| {
        let mut backfill = backfill(month(), "always_refused").env("MAX_RETRIES", "2");
        // Each run gets a little further than the one before.
        for (request, skipped, status, words) in [
            (request::TRACES, 3, UNAVAILABLE, "the traces of 2024-06-17"),
            (request::OBSERVATIONS, 1, TOO_MANY, "segment "),
            (request::INSERT, 0, UNAVAILABLE, "segment "),
        ] {
            let refusal = backfill
                .proxy
                .arm(refusal(request, status, true).skip(skipped).always());
            let outcome = match request {
                request::TRACES => backfill.tool.run(),
                _ => {
                    let outcome;
                    (backfill, outcome) = backfill.resume();
                    outcome
                }
            };
            refusal.lift();
            assert_eq!(refusal.count(), 3);
            outcome.assert_code(1);
            let error = outcome.stderr.lines().last().unwrap_or_default();
            for word in [words, status, "continue with --resume"] {
                assert!(error.contains(word), "{word:?} is not in: {error}");
            }
            assert_eq!(backfill.reported("errors"), 1);
            println!("{error}");
        }
        let (backfill, outcome) = backfill.resume();
        backfill.assert_survived(&outcome, 0);
        assert_eq!(backfill.tool.report()["resumed"], true);
    });
}
