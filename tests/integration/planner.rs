//! A plan covers every row of its partition exactly once, whatever the ids and however the rows are
//! spread, and reading its segments scans little more than the rows that are there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Database, Options, Server, TESTER, Tool, repository_file};
use events_backfill::internals::{
    Compression, Connection, ConnectionOptions, Password, Segment, SegmentRows, Shard,
    ShareOfMonth, Source, TableInfo, Trust, is_of_share, of_segment, segments,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::runtime::Runtime;
use url::Url;

/// Rows per segment where nothing else is said.
const DEFAULT_SEGMENT_ROWS: u64 = 250_000;

/// Rows that may be scanned per row of the partition.
const MOST_SCANNED: f64 = 1.3;

/// The partition of all tables here.
const PARTITION: &str = "202406";

/// An `observations` with Langfuse's keys and few columns: narrow rows have the largest granules,
/// in rows, so they are where a plan scans most that it does not need.
fn create_observations(database: &Database, settings: &str) {
    database
        .query(&format!(
            "CREATE TABLE observations
            (
                id String,
                project_id String,
                type LowCardinality(String),
                start_time DateTime64(3),
                name String,
                event_ts DateTime64(3),
                is_deleted UInt8
            )
            ENGINE = ReplacingMergeTree(event_ts, is_deleted)
            PARTITION BY toYYYYMM(start_time)
            PRIMARY KEY (project_id, type, toDate(start_time))
            ORDER BY (project_id, type, toDate(start_time), id)
            {settings}"
        ))
        .unwrap();
}

/// Fills it: every expression is over `number`.
struct Rows<'a> {
    count: u64,
    id: &'a str,
    project: &'a str,
    kind: &'a str,
    day: &'a str,
}

/// What an ordinary month has: as many ids as rows, in no order.
const ORDINARY: Rows<'static> = Rows {
    count: 1_000_000,
    id: "lower(hex(MD5(toString(number))))",
    project: "'project'",
    kind: "'SPAN'",
    day: "number % 30",
};

impl Rows<'_> {
    fn insert(&self, database: &Database) {
        database
            .query(&format!(
                "INSERT INTO observations (id, project_id, type, start_time, name, event_ts) \
                 SELECT {}, {}, {}, toDateTime64('2024-06-01 00:00:00', 3) + toIntervalDay({}) \
                 + toIntervalSecond(number % 86400), 'name', now() \
                 FROM numbers({})",
                self.id, self.project, self.kind, self.day, self.count
            ))
            .unwrap();
    }
}

/// A partition, what there is to know about it, and a connection of the program's own kind.
struct Partition<'a> {
    database: &'a Database<'a>,
    runtime: Runtime,
    connection: Connection,
    table: TableInfo,
    rows_in_parts: u64,
    parts: u64,
}

impl<'a> Partition<'a> {
    /// As the user [`TESTER`], so that the log of queries tells the planner's from the test's.
    fn new(database: &'a Database) -> Self {
        let runtime = Runtime::new().unwrap();
        let connection = Connection::new(ConnectionOptions {
            gives_way: true,
            urls: vec![Url::parse(&database.server.url()).unwrap()],
            user: TESTER.0.to_owned(),
            password: Password::new(TESTER.1),
            compression: Compression::None,
            trust: Trust::Machine,
        })
        .unwrap();
        let (table, partitions) = runtime.block_on(async {
            let table = connection
                .table(&database.name, "observations")
                .await
                .unwrap()
                .expect("it was created");
            let partitions = connection.partitions(&table).await.unwrap();
            (table, partitions)
        });
        let partition = partitions
            .iter()
            .find(|partition| partition.partition_id == PARTITION);
        let (rows_in_parts, parts) =
            partition.map_or((0, 0), |partition| (partition.rows, partition.parts));
        Self {
            database,
            runtime,
            connection,
            table,
            rows_in_parts,
            parts,
        }
    }

    fn plan(&self, segment_rows: u64) -> Vec<Segment> {
        self.plan_as_if_in(self.parts, segment_rows)
    }

    /// A plan as for another number of parts. With none of them segments may be as small as one
    /// likes, which is how a few rows come to many segments.
    fn plan_as_if_in(&self, parts: u64, segment_rows: u64) -> Vec<Segment> {
        self.plan_share(month(), parts, segment_rows)
    }

    fn plan_share(&self, share: ShareOfMonth, parts: u64, segment_rows: u64) -> Vec<Segment> {
        let partition = segments::SourcePartition {
            source: Source::Observations,
            table: &self.table,
            id: PARTITION,
            parts,
            share,
        };
        let partitions = [partition];
        let planning = segments::make(
            &self.connection,
            &partitions,
            SegmentRows::asked(segment_rows),
        );
        let segments = self.runtime.block_on(planning).unwrap();
        for (number, segment) in segments.iter().enumerate() {
            assert_eq!(segment.number as usize, number);
        }
        segments
    }

    /// Every row is in one segment: by one look at each row with the conditions of all segments,
    /// and by reading every segment as the program does, where the primary index decides what is
    /// looked at at all.
    #[track_caller]
    fn assert_covered_once(&self, segments: &[Segment]) {
        // Many conditions on long ids would be too long for one query.
        let mut hits = BTreeMap::new();
        for some in segments.chunks(40) {
            let conditions: Vec<String> = some
                .iter()
                .map(|segment| format!("toUInt32({})", segment.predicate()))
                .collect();
            let answer = self.query(&format!(
                "SELECT hits, count(), sum(cityHash64(o.id, o.project_id, o.type, o.start_time)) FROM ( \
                 SELECT id, project_id, type, start_time, {} AS hits \
                 FROM observations AS o FINAL WHERE o._partition_id = '{PARTITION}') AS o \
                 GROUP BY hits",
                conditions.join(" + ")
            ));
            for line in answer.lines() {
                let mut fields = line.split('\t').map(|field| field.parse::<u64>().unwrap());
                let mut next = || fields.next().unwrap();
                let (hit, rows, hash) = (next(), next(), next());
                let entry: &mut (u64, u64) = hits.entry(hit).or_default();
                *entry = (entry.0 + rows, entry.1.wrapping_add(hash));
            }
        }
        let total = self.count_and_hash("1");
        assert!(
            hits.keys().all(|&hit| hit <= 1),
            "twice in a plan: {hits:?}"
        );
        assert_eq!(
            hits.get(&1).copied().unwrap_or_default(),
            total,
            "not in the plan"
        );

        let mut read = (0, 0_u64);
        for segment in segments {
            let (rows, hash) = self.count_and_hash(&segment.predicate());
            read = (read.0 + rows, read.1.wrapping_add(hash));
        }
        assert_eq!(read, total, "the index hides rows, or shows them twice");
    }

    fn count_and_hash(&self, condition: &str) -> (u64, u64) {
        let answer = self.query(&format!(
            "SELECT count(), sum(cityHash64(o.id, o.project_id, o.type, o.start_time)) \
             FROM observations AS o FINAL WHERE o._partition_id = '{PARTITION}' AND {condition} \
             SETTINGS optimize_move_to_prewhere_if_final = 0, \
             do_not_merge_across_partitions_select_final = 1"
        ));
        let (rows, hash) = answer.trim().split_once('\t').unwrap();
        (rows.parse().unwrap(), hash.parse().unwrap())
    }

    /// Reads a segment to its end in the form of the program, as its user.
    fn read(&self, share: ShareOfMonth, segment: &Segment) -> u64 {
        // The same as a run reads, but for the columns. A whole run, below, has the real ones.
        let select = format!(
            "SELECT o.id, o.project_id, CAST(o.type, 'String'), o.start_time, o.name, o.event_ts \
             FROM {} AS o FINAL WHERE {} AND {}",
            self.table.qualified_name(),
            is_of_share(Source::Observations, share),
            segment.predicate()
        );
        let statement = of_segment(select, 8_192, 4_000_000);
        self.runtime.block_on(async {
            let mut stream = self.connection.send(&statement).unwrap();
            let mut bytes = 0;
            while let Some(chunk) = stream.next_chunk().await.unwrap() {
                bytes += chunk.len() as u64;
            }
            bytes
        })
    }

    /// Plans and reads everything, and checks how much of the table that scanned, the planner's own
    /// queries included.
    #[track_caller]
    fn assert_scans_little(&self, segment_rows: u64) -> Vec<Segment> {
        let segments = self.plan(segment_rows);
        for segment in &segments {
            self.read(month(), segment);
        }
        assert_scanned_little(self.database, self.rows_in_parts, &describe(&segments));
        segments
    }

    #[track_caller]
    fn query(&self, sql: &str) -> String {
        self.database
            .query(sql)
            .unwrap_or_else(|error| panic!("{error}\n{sql}"))
    }
}

fn describe(segments: &[Segment]) -> String {
    let mut text = format!("{} segments of rows:", segments.len());
    for segment in segments {
        let _ = write!(text, " {}", segment.rows);
    }
    text
}

/// Whatever the user [`TESTER`] has read of a database's `observations` since the database is there.
#[track_caller]
fn assert_scanned_little(database: &Database, rows_in_parts: u64, context: &str) {
    assert_scanned_little_of(MOST_SCANNED, database, rows_in_parts, context);
}

/// The same with another limit, in rows per row of the partition.
#[track_caller]
fn assert_scanned_little_of(most: f64, database: &Database, rows_in_parts: u64, context: &str) {
    let from_log = format!(
        "FROM system.query_log WHERE user = '{}' AND query_kind = 'Select' \
         AND position(query, '{}') > 0 AND position(query, 'observations') > 0 \
         AND (position(query, '`observations`') > 0 OR position(query, 'mergeTreeIndex') > 0)",
        TESTER.0, database.name
    );
    // The answer of a query may arrive before the server has logged that it is finished.
    let unfinished =
        format!("SELECT countIf(type = 'QueryStart') != countIf(type != 'QueryStart') {from_log}");
    let started = Instant::now();
    loop {
        database.query("SYSTEM FLUSH LOGS query_log").unwrap();
        if database.query(&unfinished) == Ok("0\n".to_owned()) {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "queries go on");
        thread::sleep(Duration::from_millis(100));
    }
    let log = format!(
        "SELECT read_rows, replaceRegexpAll(query, '^SELECT .* FROM ', 'SELECT … FROM ') \
         {from_log} AND type != 'QueryStart' ORDER BY event_time_microseconds"
    );
    let log = database.query(&log).unwrap();
    let scanned: u64 = log
        .lines()
        .map(|line| line.split('\t').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(
        scanned >= rows_in_parts,
        "everything was read, so the log does not have all queries\n{log}"
    );
    let ratio = scanned as f64 / rows_in_parts as f64;
    println!("scanned {scanned} of {rows_in_parts} rows, {ratio:.3} times: {context}");
    assert!(
        ratio <= most,
        "{scanned} rows were scanned of {rows_in_parts}, {ratio:.3} times as many\n{context}\n{log}"
    );
}

fn month() -> ShareOfMonth {
    ShareOfMonth::whole(PARTITION.parse().unwrap())
}

// -------------------------------------------------------------------------------------------------
// How much is scanned
// -------------------------------------------------------------------------------------------------

#[test]
fn eight_shards_read_together_about_what_one_process_reads() {
    let database = Server::shared().database("shards");
    create_observations(&database, "");
    // Several projects and types, as a month has: each shard has days in the middle of each of them.
    Rows {
        count: 4_000_000,
        project: "['one', 'two', 'three'][1 + intDiv(number, 30) % 3]",
        kind: "['SPAN', 'GENERATION'][1 + intDiv(number, 90) % 2]",
        ..ORDINARY
    }
    .insert(&database);
    // One part, so that segments may be short.
    database.query("OPTIMIZE TABLE observations FINAL").unwrap();
    let partition = Partition::new(&database);
    let mut rows = (0, 0_u64);
    let mut segments = Vec::new();
    for shard in Shard::all(8) {
        let share = ShareOfMonth {
            shard: Some(shard),
            ..month()
        };
        for segment in partition.plan_share(share, partition.parts, 50_000) {
            partition.read(share, &segment);
            let condition = format!(
                "{} AND {}",
                is_of_share(Source::Observations, share),
                segment.predicate()
            );
            let (read, hash) = partition.count_and_hash(&condition);
            rows = (rows.0 + read, rows.1.wrapping_add(hash));
            segments.push(segment);
        }
    }
    assert_eq!(
        rows,
        partition.count_and_hash("1"),
        "each row is in one shard"
    );
    assert!(segments.len() >= 24, "{}", describe(&segments));
    let context = describe(&segments);
    assert_scanned_little_of(1.4, &database, partition.rows_in_parts, &context);
}

#[test]
fn many_days_of_one_project_are_read_about_once() {
    let database = Server::shared().database("days");
    create_observations(&database, "");
    ORDINARY.insert(&database);
    let partition = Partition::new(&database);
    let segments = partition.assert_scans_little(DEFAULT_SEGMENT_ROWS);
    assert!(segments.len() >= 3, "{}", describe(&segments));
    partition.assert_covered_once(&segments);
}

#[test]
fn one_giant_group_is_read_about_once() {
    // Splitting it would scan it once for every piece: it stays in one.
    let database = Server::shared().database("giant");
    create_observations(&database, "");
    Rows {
        day: "17",
        ..ORDINARY
    }
    .insert(&database);
    let partition = Partition::new(&database);
    let segments = partition.assert_scans_little(50_000);
    partition.assert_covered_once(&segments);
}

#[test]
fn shards_of_thousands_of_tiny_groups_have_short_segments_too() {
    let database = Server::shared().database("tiny_shards");
    create_observations(&database, "");
    Rows {
        project: "concat('project-', toString(cityHash64(number) % 5000))",
        ..ORDINARY
    }
    .insert(&database);
    database.query("OPTIMIZE TABLE observations FINAL").unwrap();
    let partition = Partition::new(&database);
    let share = |shard| ShareOfMonth {
        shard: Some(shard),
        ..month()
    };
    let (mut rows, mut hashes) = (0, 0_u64);
    for shard in Shard::all(3) {
        let segments = partition.plan_share(share(shard), partition.parts, 20_000);
        assert!(segments.len() >= 3, "{}", describe(&segments));
        let planned: u64 = segments.iter().map(|segment| segment.rows).sum();
        assert!((200_000..500_000).contains(&planned), "{planned} rows");
        for segment in segments {
            let of_share = is_of_share(Source::Observations, share(shard));
            let (read, hash) =
                partition.count_and_hash(&format!("{of_share} AND {}", segment.predicate()));
            (rows, hashes) = (rows + read, hashes.wrapping_add(hash));
        }
    }
    assert_eq!((rows, hashes), partition.count_and_hash("1"));
}

#[test]
fn thousands_of_tiny_groups_are_read_about_once() {
    let database = Server::shared().database("tiny");
    create_observations(&database, "");
    Rows {
        project: "concat('project-', toString(cityHash64(number) % 5000))",
        kind: "['SPAN', 'GENERATION', 'EVENT'][1 + intDiv(number, 30) % 3]",
        ..ORDINARY
    }
    .insert(&database);
    let partition = Partition::new(&database);
    let segments = partition.assert_scans_little(DEFAULT_SEGMENT_ROWS);
    assert!(segments.len() >= 3, "{}", describe(&segments));
    partition.assert_covered_once(&segments);
}

#[test]
fn a_few_projects_with_every_type_are_read_about_once() {
    let database = Server::shared().database("types");
    create_observations(&database, "");
    Rows {
        // One of a hundred rows, seven of ten, and the rest.
        project: "multiIf(number % 100 = 0, 'small', number % 10 < 7, 'large', 'middle')",
        kind: "['SPAN', 'GENERATION', 'EVENT', 'TOOL', 'AGENT'][1 + cityHash64(number) % 5]",
        day: "cityHash64(number, 'day') % 30",
        ..ORDINARY
    }
    .insert(&database);
    let partition = Partition::new(&database);
    let segments = partition.assert_scans_little(DEFAULT_SEGMENT_ROWS);
    assert!(segments.len() >= 3, "{}", describe(&segments));
    partition.assert_covered_once(&segments);
}

#[test]
fn splitting_a_giant_group_by_id_scans_little_too() {
    // Every piece of a group scans the whole group, so only a group that is small beside the
    // partition, and large beside a segment, may be split.
    let database = Server::shared().database("split");
    create_observations(&database, "");
    Rows {
        count: 5_600_000,
        id: "hex(cityHash64(number))",
        day: "intDiv(number, 187000)",
        ..ORDINARY
    }
    .insert(&database);
    Rows {
        count: 270_000,
        id: "hex(cityHash64(number, 'giant'))",
        project: "'a giant'",
        day: "3",
        ..ORDINARY
    }
    .insert(&database);
    // In one part, as it is a while after the month is over: segments are smallest then.
    database.query("OPTIMIZE TABLE observations FINAL").unwrap();
    let partition = Partition::new(&database);
    assert_eq!(partition.parts, 1);
    let segments = partition.assert_scans_little(50_000);
    let cuts_by_id = segments
        .iter()
        .filter(|segment| segment.from.as_ref().is_some_and(|from| from.id.is_some()));
    assert!(cuts_by_id.count() > 0, "{}", describe(&segments));
    partition.assert_covered_once(&segments);
}

#[test]
fn a_partition_in_many_parts_is_read_about_once() {
    // As it is while a deployment writes: parts of all sizes, versions in several of them, and the
    // same days in all.
    let database = Server::shared().database("parts");
    create_observations(&database, "");
    database.query("SYSTEM STOP MERGES observations").unwrap();
    ORDINARY.insert(&database);
    for (count, times) in [(200_000, 2), (50_000, 4), (5_000, 10), (100, 10)] {
        for _ in 0..times {
            Rows {
                count,
                id: "lower(hex(MD5(toString(cityHash64(number) % 1000000))))",
                kind: "if(number % 5 = 0, 'GENERATION', 'SPAN')",
                ..ORDINARY
            }
            .insert(&database);
        }
    }
    let partition = Partition::new(&database);
    assert!(partition.parts >= 27, "{}", partition.parts);
    let segments = partition.assert_scans_little(DEFAULT_SEGMENT_ROWS);
    partition.assert_covered_once(&segments);
}

#[test]
fn equal_parts_that_overlap_everywhere_are_read_about_once() {
    // Few parts, so that there are several segments, each of which ends inside every part.
    let database = Server::shared().database("overlap");
    create_observations(&database, "");
    database.query("SYSTEM STOP MERGES observations").unwrap();
    for part in 0..4 {
        Rows {
            count: 500_000,
            id: &format!("lower(hex(MD5(concat(toString(number), '{}'))))", part % 2),
            project: "concat('project-', toString(cityHash64(number) % 300))",
            ..ORDINARY
        }
        .insert(&database);
    }
    let partition = Partition::new(&database);
    assert_eq!(partition.parts, 4);
    let segments = partition.assert_scans_little(DEFAULT_SEGMENT_ROWS);
    assert!(segments.len() >= 4, "{}", describe(&segments));
    partition.assert_covered_once(&segments);
}

#[test]
fn a_whole_run_reads_the_observations_about_once() {
    // All of it: inspecting, planning, streaming; in several parts, next to other months.
    let database = Server::shared().database("run");
    database.load_schema();
    let insert = |first_day: &str, count: u64, name: &str| {
        database
            .query(&format!(
                "INSERT INTO observations (id, trace_id, project_id, type, start_time, name, event_ts) \
                 SELECT lower(hex(MD5(concat(toString(number), '{name}')))), \
                 toString(intDiv(number, 10)), \
                 ['large', 'large', 'large', 'middle', 'small'][1 + cityHash64(number) % 5], \
                 ['SPAN', 'GENERATION', 'EVENT'][1 + cityHash64(number, 't') % 3], \
                 toDateTime64('{first_day} 00:00:00', 3) + toIntervalSecond(cityHash64(number, 's') % 2500000), \
                 '{name}', now() FROM numbers({count})"
            ))
            .unwrap();
    };
    database.query("SYSTEM STOP MERGES observations").unwrap();
    insert("2024-06-01", 500_000, "first");
    insert("2024-06-01", 100_000, "second");
    insert("2024-06-01", 20_000, "second");
    insert("2024-05-01", 100_000, "earlier");
    insert("2024-07-01", 100_000, "later");
    let sql = format!(
        "SELECT sum(rows) FROM system.parts WHERE active AND database = currentDatabase() \
         AND table = 'observations' AND partition_id = '{PARTITION}'"
    );
    let rows_in_parts: u64 = database.query(&sql).unwrap().trim().parse().unwrap();

    let tool = Tool::new(&database)
        .args(["--partition", PARTITION, "--dry-run"])
        .args(["--segment-rows", "150000"])
        .env("CLICKHOUSE_USER", TESTER.0)
        .env("CLICKHOUSE_PASSWORD", TESTER.1);
    tool.run().assert_code(0);
    let report = tool.report();
    assert_eq!(report["observations_processed"], 600_000);
    assert!(report["segments_total"].as_u64() > Some(1), "{report}");
    // And once more as hashes of their ids, to find those with several versions; so are those of
    // other months that were written later.
    let hashed = rows_in_parts + 200_000;
    assert_scanned_little(&database, rows_in_parts + hashed, &report.to_string());
}

// -------------------------------------------------------------------------------------------------
// That every row is there once
// -------------------------------------------------------------------------------------------------

#[test]
fn a_single_row_is_one_segment() {
    let database = Server::shared().database("single");
    create_observations(&database, "");
    Rows {
        count: 1,
        ..ORDINARY
    }
    .insert(&database);
    let partition = Partition::new(&database);
    let segments = partition.plan(DEFAULT_SEGMENT_ROWS);
    assert_eq!(segments.len(), 1);
    partition.assert_covered_once(&segments);
    partition.assert_covered_once(&partition.plan_as_if_in(0, 1));
}

#[test]
fn other_months_are_in_no_segment() {
    let database = Server::shared().database("months");
    create_observations(&database, "SETTINGS index_granularity = 64");
    for month in ["-40", "0", "40"] {
        Rows {
            count: 5_000,
            day: &format!("number % 25 + {month}"),
            project: "concat('project-', toString(number % 7))",
            ..ORDINARY
        }
        .insert(&database);
    }
    let partition = Partition::new(&database);
    let segments = partition.plan_as_if_in(0, 500);
    assert!(segments.len() >= 5, "{}", describe(&segments));
    partition.assert_covered_once(&segments);
    let rows = partition.query(&format!(
        "SELECT count() FROM observations FINAL WHERE _partition_id = '{PARTITION}'"
    ));
    assert_eq!(rows, "5000\n");
}

#[test]
fn rows_that_arrive_after_the_plan_was_made_are_in_it() {
    let database = Server::shared().database("late");
    create_observations(&database, "SETTINGS index_granularity = 64");
    Rows {
        count: 10_000,
        project: "concat('project-', toString(number % 9))",
        ..ORDINARY
    }
    .insert(&database);
    let partition = Partition::new(&database);
    let segments = partition.plan_as_if_in(0, 1_000);
    assert!(segments.len() >= 5, "{}", describe(&segments));
    // Before the first, after the last, and between all others.
    for project in ["''", "'zzz'", "concat('project-', toString(number % 20))"] {
        Rows {
            count: 3_000,
            id: "concat('late ', toString(number))",
            project,
            kind: "['', 'SPAN', 'ZZZ'][1 + number % 3]",
            ..ORDINARY
        }
        .insert(&database);
    }
    partition.assert_covered_once(&segments);
}

#[test]
fn a_time_zone_in_the_users_profile_changes_nothing() {
    // The days in the sort keys, and the months, are those of the server's time zone. A session in
    // another one must not look for them on other days.
    let server = Server::start(Options {
        profile: "<session_timezone>America/New_York</session_timezone>".to_owned(),
        ..Options::default()
    });
    let database = server.database("time_zone");
    assert_eq!(
        database.query("SELECT timezone(), serverTimezone() = timezone()"),
        Ok("America/New_York\t0\n".to_owned())
    );
    let run = |sql: &str| {
        let utc = [("database", &*database.name), ("session_timezone", "UTC")];
        let answer = server.request(&utc, sql.as_bytes());
        String::from_utf8(answer.unwrap_or_else(|error| panic!("{sql}: {error}"))).unwrap()
    };
    for statement in fs::read_to_string(repository_file("bench-data/schema.sql"))
        .unwrap()
        .split(";\n")
        .filter(|statement| statement.contains("CREATE "))
    {
        run(statement);
    }
    // One trace and one observation in every hour of the month.
    run(
        "INSERT INTO traces (id, project_id, timestamp, name, event_ts) \
         SELECT toString(number), 'project', toDateTime64('2024-06-01 00:30:00', 3, 'UTC') \
         + toIntervalHour(number), 'trace', now() FROM numbers(720)",
    );
    run(
        "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts) \
         SELECT toString(number), toString(number % 720), 'project', 'SPAN', \
         toDateTime64('2024-06-01 00:30:00', 3, 'UTC') + toIntervalHour(number % 720), now() \
         FROM numbers(200000)",
    );
    assert_eq!(
        run("SELECT DISTINCT _partition_id FROM observations"),
        "202406\n"
    );
    let tool = Tool::new(&database).args(["--partition", PARTITION, "--segment-rows", "50000"]);
    tool.run().assert_code(0);
    let report = tool.report();
    assert!(report["segments_total"].as_u64() > Some(1), "{report}");
    assert_eq!(report["traces_loaded"], 720, "{report}");
    assert_eq!(report["observations_without_trace"], 0, "{report}");
    assert_eq!(report["events_inserted"], 200_000, "{report}");
    assert_eq!(
        run("SELECT count(), countIf(trace_name = 'trace'), \
             min(toString(start_time)), max(toString(start_time)) FROM events_full FINAL"),
        "200000\t200000\t2024-06-01 00:30:00.000000\t2024-06-30 23:30:00.000000\n"
    );
}

#[test]
fn another_primary_key_than_langfuses_is_planned_by_a_scan() {
    let database = Server::shared().database("other_key");
    database
        .query(
            "CREATE TABLE observations (id String, project_id String, type LowCardinality(String), \
             start_time DateTime64(3), name String, event_ts DateTime64(3), is_deleted UInt8) \
             ENGINE = ReplacingMergeTree(event_ts, is_deleted) PARTITION BY toYYYYMM(start_time) \
             ORDER BY (id, project_id)",
        )
        .unwrap();
    Rows {
        count: 20_000,
        ..ORDINARY
    }
    .insert(&database);
    let partition = Partition::new(&database);
    let segments = partition.plan_as_if_in(0, 1_000);
    assert!(segments.len() >= 10, "{}", describe(&segments));
    partition.assert_covered_once(&segments);
}

/// Names as they come, and as nobody expects them: empty, quotes, backslashes, zero bytes, bytes
/// that are no text, what looks like SQL, all of one beginning.
fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => proptest::collection::vec(any::<u8>(), 0..12),
        2 => "[a-c]{0,3}".prop_map(String::into_bytes),
        1 => "[0-9a-f]{32}".prop_map(String::into_bytes),
        1 => prop::sample::select(vec![
            &b""[..], b"\0", b"\0\0", b"'", b"''", b"\\", b"\\'", b"\"", b"`", b"\n", b"%", b"?",
            b"? ?fields ??", b"{x:String}", b"' OR 1 --", b"\xff", b"\xff\xff", b"\xc3\x28",
            "東京 \u{1f680}".as_bytes(),
        ]).prop_map(<[u8]>::to_vec),
        1 => (1_usize..3_000).prop_map(|length| vec![b'x'; length]),
    ]
}

/// A table of groups, some of them large.
#[derive(Debug, Clone)]
struct Distribution {
    /// Project, type, day, rows.
    groups: Vec<(Vec<u8>, Vec<u8>, u16, u32)>,
    ids: Vec<Vec<u8>>,
    parts: usize,
    granularity: u32,
    segment_rows: u64,
}

fn any_distribution() -> impl Strategy<Value = Distribution> {
    let rows = prop_oneof![4 => 1_u32..10, 2 => 10_u32..200, 1 => 200_u32..2_000];
    let kind = prop_oneof![
        prop::sample::select(vec!["SPAN", "GENERATION", "EVENT"]).prop_map(|kind| kind.into()),
        any_name(),
    ];
    let group = (any_name(), kind, 0_u16..30, rows);
    (
        proptest::collection::vec(group, 1..40),
        proptest::collection::vec(any_name(), 0..30),
        1_usize..5,
        prop::sample::select(vec![1_u32, 2, 16, 128, 8192]),
        1_u64..400,
    )
        .prop_map(
            |(groups, ids, parts, granularity, segment_rows)| Distribution {
                groups,
                ids,
                parts,
                granularity,
                segment_rows,
            },
        )
}

impl Distribution {
    /// The rows of one part in the format RowBinary.
    fn rows_of_part(&self, part: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let text = |bytes: &mut Vec<u8>, text: &[u8]| {
            let mut length = text.len();
            while length >= 128 {
                bytes.push(128 | (length % 128) as u8);
                length /= 128;
            }
            bytes.push(length as u8);
            bytes.extend_from_slice(text);
        };
        let mut number = 0_usize;
        for (project, kind, day, rows) in &self.groups {
            for row in 0..*rows as usize {
                number += 1;
                // Some rows are in several parts, as versions of one.
                if (number + row) % self.parts != part && !number.is_multiple_of(5) {
                    continue;
                }
                match self.ids.get(row) {
                    Some(id) => text(&mut bytes, id),
                    None => text(
                        &mut bytes,
                        format!("{:x}", number * 2_654_435_761).as_bytes(),
                    ),
                }
                text(&mut bytes, project);
                text(&mut bytes, kind);
                let seconds = 1_717_200_000 + i64::from(*day) * 86_400 + (row % 86_000) as i64;
                bytes.extend_from_slice(&(seconds * 1_000).to_le_bytes());
                bytes.extend_from_slice(&(seconds * 1_000 + part as i64).to_le_bytes());
                bytes.push(u8::from(number.is_multiple_of(97)));
            }
        }
        bytes
    }
}

#[test]
fn any_distribution_of_any_names_is_covered_once() {
    // The same every time: what fails once must fail again.
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config {
        cases: 40,
        max_shrink_iters: 30,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, random);
    let cuts_by_id = std::cell::Cell::new(0);
    runner
        .run(&any_distribution(), |distribution| {
            let database = Server::shared().database("any");
            let settings = format!("SETTINGS index_granularity = {}", distribution.granularity);
            create_observations(&database, &settings);
            database.query("SYSTEM STOP MERGES observations").unwrap();
            for part in 0..distribution.parts {
                let rows = distribution.rows_of_part(part);
                let insert = "INSERT INTO observations \
                              (id, project_id, type, start_time, event_ts, is_deleted) \
                              FORMAT RowBinary";
                database.insert_bytes(insert, &rows).unwrap();
            }
            let partition = Partition::new(&database);
            if partition.parts > 0 {
                let segments = partition.plan_as_if_in(0, distribution.segment_rows);
                let by_id = segments
                    .iter()
                    .filter(|segment| segment.from.as_ref().is_some_and(|from| from.id.is_some()));
                cuts_by_id.set(cuts_by_id.get() + by_id.count());
                partition.assert_covered_once(&segments);
            }
            database.query("DROP TABLE observations").unwrap();
            Ok(())
        })
        .unwrap();
    assert!(cuts_by_id.get() > 0, "no group was ever split by id");
}

#[test]
fn cuts_fall_between_ids_of_any_form() {
    // A group that is split, whose ids are all odd: they end up in the conditions themselves.
    let database = Server::shared().database("odd_ids");
    create_observations(&database, "SETTINGS index_granularity = 16");
    Rows {
        count: 400,
        id: "concat(['', '\\0', '\\'', '\\\\', unhex('ff'), unhex('c328'), '? ?fields', 'x'][1 + number % 8], \
             if(number < 8, '', toString(number)))",
        project: "concat('it''s \\\\ ', unhex('fe00'), '?')",
        kind: "concat('odd\\\\''', unhex('ff'))",
        day: "5",
    }
    .insert(&database);
    Rows {
        count: 16_000,
        project: "concat('other ', toString(number % 40))",
        ..ORDINARY
    }
    .insert(&database);
    let partition = Partition::new(&database);
    let segments = partition.plan_as_if_in(0, 10);
    let by_id: Vec<_> = segments
        .iter()
        .filter_map(|segment| segment.from.as_ref()?.id.as_ref())
        .collect();
    assert!(by_id.len() >= 2, "{by_id:?}");
    partition.assert_covered_once(&segments);
}
