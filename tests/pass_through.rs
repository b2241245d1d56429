//! What is not decoded arrives as it was: any block of any supported type can be walked, cut up and
//! put together again, and bytes that are no block, or only part of one, are never taken for one.

// A test or a benchmark ends by a panic, and its numbers are small.
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::missing_docs_in_private_items,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;
use std::time::{Duration, Instant};

use events_backfill::internals::{
    Block, BlockReader, BufferPool, FixedCursor, NativeError, Share, StringArrayWriter,
    put_block_header, put_column_header, put_string, put_varint,
};
use support::differential::{
    Specification, ask, ask_number, assert_equal, execute, keep_versions_apart,
};
use support::mutate::mutate;
use support::well_formed::assert_well_formed;
use support::{Database, SAMPLE_PARTITION, Server, Tool};

/// Most bytes of a block, where a test does not care.
const LARGE: usize = 64 * 1024 * 1024;

// -------------------------------------------------------------------------------------------------
// Any type
// -------------------------------------------------------------------------------------------------

/// How many tables of random types are tried.
const TABLES: u64 = 64;

/// Writes down random types that the server has and the program supports.
struct TypeGenerator {
    random: fastrand::Rng,
}

impl TypeGenerator {
    fn any(&mut self, depth: u32) -> String {
        if depth == 0 {
            return self.maybe_nullable();
        }
        match self.random.u8(0..8) {
            0 | 1 => format!("Array({})", self.any(depth - 1)),
            2 | 3 => format!("Map({}, {})", self.map_key(), self.any(depth - 1)),
            4 => {
                let elements: Vec<String> = (0..self.random.usize(1..4))
                    .map(|_| self.any(depth - 1))
                    .collect();
                format!("Tuple({})", elements.join(", "))
            }
            5 => {
                let (first, second) = (self.any(depth - 1), self.any(depth - 1));
                format!("Tuple(first {first}, `odd name, (1` {second})")
            }
            _ => self.maybe_nullable(),
        }
    }

    fn maybe_nullable(&mut self) -> String {
        let scalar = self.scalar();
        match self.random.bool() {
            true => format!("Nullable({scalar})"),
            false => scalar,
        }
    }

    fn map_key(&mut self) -> String {
        self.one_of(&[
            "String",
            "String",
            "FixedString(3)",
            "UInt64",
            "Int8",
            "Date",
            "UUID",
        ])
    }

    fn scalar(&mut self) -> String {
        match self.random.u8(0..8) {
            0 | 1 => "String".to_owned(),
            2 => self.one_of(&[
                "UInt8", "UInt16", "UInt32", "UInt64", "UInt128", "UInt256", "Int8", "Int16",
                "Int32", "Int64", "Int128", "Int256",
            ]),
            3 => self.one_of(&["Float32", "Float64", "Bool", "UUID", "IPv4", "IPv6"]),
            4 => {
                let digits = self.random.u32(1..=76);
                format!("Decimal({digits}, {})", self.random.u32(0..=digits))
            }
            5 => {
                let digits = self.random.u32(0..=9);
                match self.random.bool() {
                    true => format!("DateTime64({digits})"),
                    false => format!("DateTime64({digits}, 'Europe/Berlin')"),
                }
            }
            6 => self.one_of(&["Date", "Date32", "DateTime", "DateTime('Asia/Tokyo')"]),
            _ => match self.random.u8(0..3) {
                0 => "Enum8('a)' = -128, 'it\\'s' = 0, '' = 127)".to_owned(),
                1 => "Enum16('(' = -32768, 'b, c' = 32767)".to_owned(),
                _ => format!("FixedString({})", self.random.u32(1..40)),
            },
        }
    }

    fn one_of(&mut self, names: &[&str]) -> String {
        names[self.random.usize(0..names.len())].to_owned()
    }
}

/// Fills a table with random values; `row_number` is its first column. The second has a type that
/// the generator of the server does not know.
fn create_random_table(database: &Database, name: &str, types: &[String], seed: u64, rows: u64) {
    let columns: Vec<String> = types
        .iter()
        .enumerate()
        .map(|(index, data_type)| format!("c{index} {data_type}"))
        .collect();
    let columns = columns.join(", ");
    execute(
        database,
        &format!(
            "CREATE TABLE {name} (row_number UInt64, short_float BFloat16, {columns}) ENGINE = Memory"
        ),
    );
    // The table keeps blocks as they were inserted, so there are several.
    execute(
        database,
        &format!(
            "INSERT INTO {name} SELECT rowNumberInAllBlocks() AS n, n / 3 - 10, * \
             FROM generateRandom({}, {seed}, 40, 4) LIMIT {rows} \
             SETTINGS max_block_size = 37, min_insert_block_size_rows = 0, \
                 min_insert_block_size_bytes = 0",
            quoted(&columns)
        ),
    );
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// All blocks of a stream that arrives in chunks of random sizes.
fn read_in_random_chunks(
    bytes: &[u8],
    max_block_bytes: usize,
    random: &mut fastrand::Rng,
) -> Result<Vec<Block>, NativeError> {
    let mut reader = BlockReader::new(max_block_bytes, &BufferPool::new(LARGE, LARGE));
    let mut blocks = Vec::new();
    let largest_chunk = [1, 7, 100, 5_000, bytes.len() + 1][random.usize(0..5)];
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = random.usize(1..=largest_chunk).min(rest.len());
        reader.push(&rest[..length]);
        rest = &rest[length..];
        while let Some(block) = reader.next_block()? {
            blocks.push(block);
        }
    }
    reader.finish()?;
    Ok(blocks)
}

/// Cuts `count` columns into runs, leaves some runs out and shuffles the rest.
fn shuffled_runs(count: usize, random: &mut fastrand::Rng) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    while start < count {
        let end = random.usize(start + 1..=count);
        // The first run has the row number, which is needed to compare.
        if start == 0 || random.u8(0..4) > 0 {
            runs.push(start..end);
        }
        start = end;
    }
    random.shuffle(&mut runs);
    runs
}

/// Two blocks that have the rows of one between them, or the one where all rows came to one side. Some
/// columns of the first one stay where they were until all bytes are put together.
fn divided(block: &Block, random: &mut fastrand::Rng) -> Vec<Block> {
    let pool = BufferPool::new(LARGE, LARGE);
    let is_first: Vec<bool> = (0..block.rows).map(|_| random.bool()).collect();
    let halves = [true, false].map(|half| {
        let rows = (0..block.rows).filter(|&row| is_first[row] == half);
        // Neighbours sometimes as one range, sometimes as several.
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for row in rows {
            match ranges.last_mut() {
                Some(last) if last.end == row && random.u8(0..3) > 0 => last.end += 1,
                _ => ranges.push(row..row + 1),
            }
        }
        ranges
    });
    let shares = halves.each_ref().map(|rows| Share {
        rows,
        buffer: pool.take(),
    });
    let [first, second] = block.divide(shares, |_, _| random.bool()).unwrap();
    let halves = [put_together(&first), second].into_iter();
    let halves = halves.filter(|half| half.rows > 0);
    halves.inspect(assert_well_formed).collect()
}

/// A block as it arrives once its pieces are sent.
fn put_together(block: &Block) -> Block {
    let mut bytes = Vec::new();
    put_block_header(&mut bytes, block.columns.len(), block.rows);
    bytes.extend(block.pieces(0..block.columns.len()).concat());
    let pool = BufferPool::new(LARGE, LARGE);
    let mut reader = BlockReader::new(LARGE, &pool);
    reader.push(&bytes);
    // Without rows there is no block.
    let arrived = reader.next_block().unwrap();
    arrived.unwrap_or_else(|| block.clone())
}

/// A block of some columns of another, and three columns that are built.
fn respliced(block: &Block, runs: &[Range<usize>]) -> Vec<u8> {
    let mut out = Vec::new();
    let kept: usize = runs.iter().map(Range::len).sum();
    put_block_header(&mut out, kept + 3, block.rows);
    for run in runs {
        out.extend_from_slice(&block.pieces(run.clone()).concat());
    }
    let numbers: Vec<u64> = {
        let mut cursor = FixedCursor::<8>::new(block.values(0));
        let next = |_| u64::from_le_bytes(cursor.next_value().unwrap());
        (0..block.rows).map(next).collect()
    };
    put_column_header(&mut out, "built_text", "String");
    for number in &numbers {
        put_string(&mut out, format!("row {number}").as_bytes());
    }
    put_column_header(&mut out, "built_list", "Array(String)");
    put_lists(&mut out, &numbers, |_, element| element.to_string());
    put_column_header(&mut out, "built_map", "Map(String, String)");
    // A map is the offsets once, then all keys, then all values.
    put_lists(&mut out, &numbers, |_, element| format!("key {element}"));
    for number in &numbers {
        for _ in 0..number % 3 {
            put_string(&mut out, number.to_string().as_bytes());
        }
    }
    out
}

/// A column of up to two elements per row.
fn put_lists(out: &mut Vec<u8>, numbers: &[u64], element_of: impl Fn(u64, u64) -> String) {
    let mut lists = StringArrayWriter::new(out, numbers.len());
    for &number in numbers {
        for element in 0..number % 3 {
            lists.push_element(element_of(number, element).as_bytes());
        }
        lists.end_row();
    }
}

#[test]
fn every_supported_type_passes_through_unchanged() {
    let database = Server::shared().database("any_type");
    let mut blocks_seen = 0;
    for seed in 0..TABLES {
        let mut types = TypeGenerator {
            random: fastrand::Rng::with_seed(seed),
        };
        let count = types.random.usize(1..9);
        let types: Vec<String> = (0..count).map(|_| types.any(3)).collect();
        let mut random = fastrand::Rng::with_seed(seed ^ 0xa5a5);
        let (source, copy) = (format!("source_{seed}"), format!("copy_{seed}"));
        create_random_table(&database, &source, &types, seed + 1, random.u64(1..150));

        let stream = database
            .query_bytes(&format!("SELECT * FROM {source} FORMAT Native"))
            .unwrap();
        let blocks = read_in_random_chunks(&stream, LARGE, &mut random)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{types:#?}"));
        let joined: Vec<u8> = blocks
            .iter()
            .flat_map(|block| block.bytes.to_vec())
            .collect();
        assert!(joined == stream, "seed {seed}: blocks leave no byte out");
        blocks_seen += blocks.len();
        for block in &blocks {
            assert_well_formed(block);
        }

        let blocks: Vec<Block> = blocks
            .iter()
            .flat_map(|block| divided(block, &mut random))
            .collect();
        let runs = shuffled_runs(blocks[0].columns.len(), &mut random);
        let kept: Vec<String> = runs
            .iter()
            .cloned()
            .flatten()
            .map(|index| blocks[0].columns[index].name.to_string())
            .collect();
        execute(
            &database,
            &format!(
                "CREATE TABLE {copy} ENGINE = Memory AS SELECT {}, '' AS built_text, \
                 emptyArrayString() AS built_list, CAST(map(), 'Map(String, String)') AS built_map \
                 FROM {source} LIMIT 0",
                kept.join(", ")
            ),
        );
        let spliced: Vec<u8> = blocks.iter().flat_map(|b| respliced(b, &runs)).collect();
        database
            .insert_bytes(
                &format!(
                    "INSERT INTO {copy} SETTINGS input_format_skip_unknown_fields = 0 FORMAT Native"
                ),
                &spliced,
            )
            .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{types:#?}"));

        // Row numbers are distinct, so a row in its exact bytes is there once or not at all.
        let rows = |table| {
            format!(
                "SELECT formatRow('RowBinary', {}) FROM {table}",
                kept.join(", ")
            )
        };
        for (one, other) in [(&source, &copy), (&copy, &source)] {
            let different = format!("SELECT count() FROM ({} EXCEPT {})", rows(one), rows(other));
            assert_eq!(
                ask_number(&database, &different),
                0,
                "seed {seed}\n{types:#?}"
            );
        }
        let count = |table| ask_number(&database, &format!("SELECT count() FROM {table}"));
        assert_eq!(count(&source), count(&copy), "seed {seed}");
        let wrongly_built = format!(
            "SELECT countIf(built_text != concat('row ', toString(row_number))
                OR built_list != arrayMap(i -> toString(i), range(row_number % 3))
                OR mapKeys(built_map) != arrayMap(i -> concat('key ', toString(i)), range(row_number % 3))
                OR mapValues(built_map) != arrayMap(i -> toString(row_number), range(row_number % 3)))
             FROM {copy}"
        );
        assert_eq!(ask_number(&database, &wrongly_built), 0, "seed {seed}");
        for table in [source, copy] {
            execute(&database, &format!("DROP TABLE {table}"));
        }
    }
    println!("{TABLES} tables of random types in {blocks_seen} blocks passed through unchanged");
}

// -------------------------------------------------------------------------------------------------
// Part of a block, and bytes that are no block
// -------------------------------------------------------------------------------------------------

/// Small streams of few blocks, between them with every kind of layout.
fn small_streams(database: &Database) -> Vec<Vec<u8>> {
    let tables: [&[&str]; 5] = [
        &["String", "Nullable(String)", "FixedString(5)"],
        &["Map(String, UInt64)", "Map(String, Array(String))"],
        &["Array(Array(Nullable(UInt16)))", "Array(String)", "Bool"],
        &[
            "Tuple(a UInt8, b Tuple(String, Nullable(Date)))",
            "DateTime64(6)",
        ],
        &[
            "Nullable(Decimal(18, 12))",
            "Array(Tuple(String, Map(String, UInt8)))",
        ],
    ];
    let streams = tables.iter().enumerate().map(|(number, types)| {
        let name = format!("small_{number}");
        let types: Vec<String> = types.iter().map(|&name| name.to_owned()).collect();
        // More than a block of 37 rows.
        create_random_table(database, &name, &types, 7, 41);
        database
            .query_bytes(&format!("SELECT * FROM {name} FORMAT Native"))
            .unwrap()
    });
    streams.collect()
}

#[test]
fn a_stream_that_ends_anywhere_gives_only_whole_blocks_and_an_error() {
    let database = Server::shared().database("truncated");
    let mut random = fastrand::Rng::with_seed(1);
    let mut tried = 0;
    for stream in small_streams(&database) {
        let whole = read_in_random_chunks(&stream, LARGE, &mut random).unwrap();
        assert!(whole.len() >= 2, "there are several blocks");
        let mut ends = vec![0];
        for block in &whole {
            ends.push(ends.last().unwrap() + block.bytes.len());
        }
        for length in 0..stream.len() {
            let mut reader = BlockReader::new(LARGE, &BufferPool::new(LARGE, LARGE));
            reader.push(&stream[..length]);
            let mut blocks = Vec::new();
            while let Some(block) = reader.next_block().unwrap() {
                blocks.push(block);
            }
            let complete = ends.iter().filter(|&&end| end <= length).count() - 1;
            assert_eq!(blocks.len(), complete, "of {length} bytes");
            for (block, original) in blocks.iter().zip(&whole) {
                assert_eq!(block.bytes, original.bytes);
            }
            match reader.finish() {
                Ok(()) => assert!(ends.contains(&length), "{length} bytes end inside a block"),
                Err(NativeError::Truncated { bytes }) => assert_eq!(bytes, length - ends[complete]),
                Err(error) => panic!("{length} bytes: {error}"),
            }
            tried += 1;
        }
    }
    println!("{tried} truncated streams");
}

#[test]
fn mutated_bytes_give_an_error_or_a_well_formed_block() {
    const MUTATIONS: usize = 20_000;
    let database = Server::shared().database("mutated");
    let streams = small_streams(&database);
    let mut random = fastrand::Rng::with_seed(2);
    let (mut errors, mut blocks) = (0, 0);
    for number in 0..MUTATIONS {
        let mut bytes = streams[number % streams.len()].clone();
        for _ in 0..random.usize(1..4) {
            mutate(&mut bytes, &mut random);
        }
        // A panic would not tell the input that caused it.
        let outcome = std::panic::catch_unwind(|| {
            let mut random = fastrand::Rng::with_seed(number as u64);
            let mut reader = BlockReader::new(1024 * 1024, &BufferPool::new(LARGE, LARGE));
            let mut returned = 0;
            let mut rest = &bytes[..];
            loop {
                let length = random.usize(1..=1000).min(rest.len());
                reader.push(&rest[..length]);
                rest = &rest[length..];
                loop {
                    match reader.next_block() {
                        Ok(None) => break,
                        Ok(Some(block)) => assert_well_formed(&block),
                        Err(_) => return (returned, true),
                    }
                    returned += 1;
                }
                if rest.is_empty() {
                    return (returned, reader.finish().is_err());
                }
            }
        });
        let (returned, failed) =
            outcome.unwrap_or_else(|_| panic!("mutation {number} panics: {bytes:02x?}"));
        blocks += returned;
        errors += usize::from(failed);
    }
    println!("{MUTATIONS} mutated streams: {errors} errors, {blocks} well-formed blocks");
    assert!(errors > MUTATIONS / 10, "mutations break something");
}

/// Remembers, for each thread, the largest piece of memory it has asked for.
struct RememberLargest;

thread_local! {
    static LARGEST_REQUEST: Cell<usize> = const { Cell::new(0) };
}

fn remember(size: usize) {
    // A thread that ends may still free and allocate.
    let _ = LARGEST_REQUEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for RememberLargest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        remember(layout.size());
        // SAFETY: the caller keeps the promises of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the promises of this function.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        remember(size);
        // SAFETY: the caller keeps the promises of this function.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: RememberLargest = RememberLargest;

/// One block of one column, as far as its values.
fn one_column(rows: u64, data_type: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_varint(&mut bytes, 1);
    put_varint(&mut bytes, rows);
    put_column_header(&mut bytes, "c", data_type);
    bytes
}

fn with_offsets(mut bytes: Vec<u8>, offsets: &[u64]) -> Vec<u8> {
    for offset in offsets {
        bytes.extend_from_slice(&offset.to_le_bytes());
    }
    bytes
}

fn with_varint(mut bytes: Vec<u8>, number: u64) -> Vec<u8> {
    put_varint(&mut bytes, number);
    bytes
}

#[test]
fn a_hostile_header_is_refused_at_once_and_reserves_nothing() {
    // Far more than the largest piece that reading a few bytes may take.
    const LIMIT: usize = 256 * 1024 * 1024;
    const MOST: usize = 2 * 1024 * 1024;
    let long_name = {
        let mut bytes = vec![1, 1];
        put_varint(&mut bytes, u64::MAX);
        bytes
    };
    let number_of_eleven_bytes = [&[0x80; 10][..], &[1]].concat();
    let deep = |name: &str| one_column(1, &format!("{name}(").repeat(8_000));
    let deepest = {
        // Longer than a name may be.
        let mut bytes = vec![1, 1];
        put_string(&mut bytes, b"c");
        put_string(&mut bytes, "Array(".repeat(100_000).as_bytes());
        bytes
    };
    let wide = format!(
        "Tuple({})",
        vec!["FixedString(200000000)"; 2_000].join(", ")
    );
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "columns beyond counting",
            with_varint(with_varint(vec![], u64::MAX), 1),
        ),
        ("no columns", vec![0, 1]),
        ("many columns", with_varint(with_varint(vec![], 1 << 20), 1)),
        ("rows beyond counting", with_varint(vec![1], u64::MAX)),
        ("more rows than bytes", with_varint(vec![1], 1 << 30)),
        ("a number of eleven bytes", number_of_eleven_bytes.clone()),
        (
            "rows in eleven bytes",
            [&[1][..], &number_of_eleven_bytes].concat(),
        ),
        ("a name beyond counting", long_name),
        ("a name that is not UTF-8", vec![1, 1, 1, 0xff, 1, b'x']),
        ("a type that is not UTF-8", vec![1, 1, 1, b'c', 1, 0xff]),
        ("a type that is none", one_column(1, "")),
        ("a type that is not supported", one_column(1, "Dynamic")),
        ("arrays in arrays", deep("Array")),
        ("tuples in tuples", deep("Tuple")),
        ("nullables in nullables", deep("Nullable")),
        ("maps in maps", deep("Map")),
        ("arrays in arrays, 100,000 deep", deepest),
        (
            "a text beyond counting",
            with_varint(one_column(1, "String"), u64::MAX),
        ),
        (
            "a text larger than a block",
            with_varint(one_column(1, "String"), 1 << 29),
        ),
        ("values beyond counting", one_column(1 << 27, "UInt256")),
        (
            "a width beyond counting",
            one_column(1, "FixedString(18446744073709551615)"),
        ),
        ("a width of nothing", one_column(1, "FixedString(0)")),
        ("a wide tuple", one_column(1, &wide)),
        (
            "offsets that go backwards",
            with_offsets(one_column(2, "Array(String)"), &[5, 4]),
        ),
        (
            "elements beyond counting",
            with_offsets(one_column(1, "Array(UInt8)"), &[u64::MAX]),
        ),
        (
            "elements larger than a block",
            with_offsets(one_column(1, "Map(UInt64, UInt64)"), &[1 << 27]),
        ),
        (
            "arrays of elements beyond counting",
            with_offsets(
                one_column(1, "Array(Array(Array(UInt8)))"),
                &[1, 1, 1 << 40],
            ),
        ),
        (
            "a null flag that is neither",
            [one_column(1, "Nullable(UInt8)"), vec![2, 0]].concat(),
        ),
    ];
    for (name, bytes) in cases {
        // All at once, and one byte after the other.
        for chunk in [bytes.len(), 1] {
            let started = Instant::now();
            LARGEST_REQUEST.set(0);
            let mut reader = BlockReader::new(LIMIT, &BufferPool::new(LARGE, LARGE));
            let refused = bytes.chunks(chunk).find_map(|chunk| {
                reader.push(chunk);
                match reader.next_block() {
                    Ok(None) => None,
                    Ok(Some(block)) => panic!("{name}: taken for a block of {} rows", block.rows),
                    Err(error) => Some(error),
                }
            });
            let (largest, took) = (LARGEST_REQUEST.get(), started.elapsed());
            assert!(refused.is_some(), "{name}: not refused");
            assert!(largest < MOST, "{name}: asks for {largest} bytes of memory");
            assert!(took < Duration::from_secs(2), "{name}: takes {took:?}");
        }
    }
}

// -------------------------------------------------------------------------------------------------
// Through the real program
// -------------------------------------------------------------------------------------------------

/// A database with empty tables. `time_type` replaces the type of all times in the sources.
fn empty_tables(name: &str, time_type: &str) -> Database<'static> {
    let database = Server::shared().database(name);
    database.load_schema();
    for table in ["traces", "observations"] {
        let definition = ask(
            &database,
            &format!("SHOW CREATE TABLE {table} FORMAT TSVRaw"),
        );
        execute(&database, &format!("DROP TABLE {table}"));
        execute(&database, &definition.replace("DateTime64(3)", time_type));
    }
    keep_versions_apart(&database, &["traces", "observations", "events_full"]);
    database
}

/// Runs the program and compares with the specification.
fn backfill_and_compare(database: &Database, tool: Tool) -> Tool {
    tool.run().assert_code(0);
    Specification::current().fill(database, SAMPLE_PARTITION, "events_full", "expected");
    assert_equal(database, "expected", "events_full");
    let rows = ask_number(database, "SELECT count() FROM expected");
    assert!(rows > 0, "there is something to compare");
    assert_eq!(tool.report()["events_inserted"], rows);
    tool
}

fn sample_month_of(database: &Database) -> Tool {
    Tool::new(database).args(["--partition", SAMPLE_PARTITION])
}

/// Columns that every row of `observations` needs, with values; the id is a number.
const OBSERVATION: &str = "
    concat('observation-', toString(number)) AS id, concat('trace-', toString(number)) AS trace_id,
    'project' AS project_id, 'GENERATION' AS type,
    toDateTime64('2024-06-15 12:34:56.789', 3) + number AS start_time, start_time AS event_ts";

const OBSERVATION_COLUMNS: &str = "id, trace_id, project_id, type, start_time, event_ts";

#[test]
fn texts_of_any_bytes_arrive_as_they_were() {
    let database = empty_tables("any_bytes", "DateTime64(3)");
    // Each text in every column that takes one, keys included; the ids of one trace too.
    execute(
        &database,
        "CREATE TABLE texts (number UInt32, text String) ENGINE = Memory",
    );
    execute(
        &database,
        "INSERT INTO texts SELECT rowNumberInAllBlocks(), arrayJoin([
             '', '\\0', '\\0\\0', 'a\\0b', char(255), unhex('c328'), unhex('eda080'), unhex('f4908080'),
             unhex('efbbbf'), repeat('x', 127), repeat('x', 128), repeat('y', 16383),
             repeat('y', 16384), '\\r\\n', '\\\\N', '\\\\', '''', '\"', '`', '??', '{}', 'NULL', ' '
         ])",
    );
    execute(
        &database,
        "INSERT INTO texts SELECT 1000 + number, char(number) FROM numbers(256)",
    );
    execute(
        &database,
        "INSERT INTO observations (
             id, trace_id, project_id, environment, type, parent_observation_id, start_time,
             event_ts, name, level, status_message, version, input, output, provided_model_name,
             internal_model_id, model_parameters, prompt_id, prompt_name, usage_pricing_tier_id,
             usage_pricing_tier_name, tool_calls, tool_call_names, metadata, usage_details,
             tool_definitions)
         SELECT
             concat(text, 'o'), concat(text, 't'), concat(text, 'p'), text, text, text,
             toDateTime64('2024-06-15 12:00:00', 3) + number, now64(), text, text, text,
             if(number % 2, NULL, text), text, text, text, text, text, text, text, text, text,
             [text, '', text], [text], map(text, text, concat(text, '2'), ''), map(text, number),
             map(text, text)
         FROM texts",
    );
    execute(
        &database,
        "INSERT INTO traces (
             id, timestamp, name, user_id, metadata, release, version, project_id, tags,
             session_id, event_ts)
         SELECT
             concat(text, 't'), toDateTime64('2024-06-15 12:00:00', 3), text, text,
             map(text, 'of the trace', concat(text, '3'), text), text, text, concat(text, 'p'),
             [text, '', text], text, now64()
         FROM texts",
    );
    let tool = backfill_and_compare(&database, sample_month_of(&database));
    assert_eq!(tool.report()["observations_without_trace"], 0);
}

#[test]
fn every_null_and_everything_empty_arrives_as_it_was() {
    let database = empty_tables("nulls", "DateTime64(3)");
    // Whatever is not named is null, or empty, or zero. With a trace and without one.
    execute(
        &database,
        &format!(
            "INSERT INTO observations ({OBSERVATION_COLUMNS}) \
             SELECT {OBSERVATION} FROM numbers(20)"
        ),
    );
    execute(
        &database,
        "INSERT INTO traces (id, project_id, timestamp, event_ts)
         SELECT concat('trace-', toString(number)), 'project',
             toDateTime64('2024-06-01 00:00:00', 3), now64()
         FROM numbers(10)",
    );
    let tool = backfill_and_compare(&database, sample_month_of(&database));
    assert_eq!(tool.report()["observations_without_trace"], 10);
    let row = ask(
        &database,
        "SELECT DISTINCT isNull(end_time), isNull(completion_start_time), isNull(prompt_version),
             isNull(usage_pricing_tier_id), isNull(usage_pricing_tier_name), model_parameters,
             empty(usage_details), empty(cost_details), empty(metadata_names), input, output
         FROM events_full",
    );
    assert_eq!(row, "1\t1\t1\t1\t1\t{}\t1\t1\t1\t\t");
}

#[test]
fn maps_of_5000_keys_arrive_as_they_were() {
    let database = empty_tables("large_maps", "DateTime64(3)");
    let pairs = |count: &str, step: u32, value: &str| {
        format!(
            "mapFromArrays(
                arrayMap(i -> concat('key-', toString(i * {step})), range({count})),
                arrayMap(i -> {value}, range({count})))"
        )
    };
    // By turns, the observation has no pairs, 5,000, or as many as a trace with 5,000 can be
    // compared with in SQL, and half of the trace's keys are the observation's too.
    let own = "[0, 5000, 200][1 + number % 3]";
    let of_trace = "[5000, 200, 5000][1 + number % 3]";
    execute(
        &database,
        &format!(
            "INSERT INTO observations ({OBSERVATION_COLUMNS}, metadata, provided_usage_details,
                 usage_details, provided_cost_details, cost_details, tool_definitions)
             SELECT {OBSERVATION}, {}, {}, {}, {}, {}, {} FROM numbers(9)",
            pairs(own, 1, "repeat('v', i % 50)"),
            pairs(own, 1, "toUInt64(i)"),
            pairs(own, 1, "toUInt64(18446744073709551615 - i)"),
            pairs(own, 1, "toDecimal64(i / 7, 12)"),
            pairs(own, 1, "toDecimal64(-i / 7, 12)"),
            pairs(own, 1, "toString(i)"),
        ),
    );
    execute(
        &database,
        &format!(
            "INSERT INTO traces (id, project_id, timestamp, event_ts, metadata)
             SELECT concat('trace-', toString(number)), 'project',
                 toDateTime64('2024-06-15 00:00:00', 3), now64(), {} FROM numbers(9)",
            pairs(of_trace, 2, "concat('of the trace ', toString(i))")
        ),
    );
    backfill_and_compare(&database, sample_month_of(&database));
    assert_eq!(
        ask(
            &database,
            "SELECT DISTINCT length(metadata_names) FROM events_full ORDER BY 1"
        ),
        // 5,000 of the trace; 100 more; all 200 and those beyond them.
        "5000\n5100"
    );
}

/// Comparing each key with each would take 25 million comparisons for a row, twice.
#[test]
fn metadata_of_5000_pairs_on_both_sides_is_merged_without_comparing_all_with_all() {
    let database = empty_tables("large_maps_on_both_sides", "DateTime64(3)");
    execute(
        &database,
        &format!(
            "INSERT INTO observations ({OBSERVATION_COLUMNS}, metadata)
             SELECT {OBSERVATION}, mapFromArrays(
                 arrayMap(i -> concat('an-attribute-of-the-observation-', toString(i)), range(5000)),
                 arrayMap(i -> 'v', range(5000)))
             FROM numbers(200)"
        ),
    );
    execute(
        &database,
        "INSERT INTO traces (id, project_id, timestamp, event_ts, metadata)
         SELECT concat('trace-', toString(number)), 'project',
             toDateTime64('2024-06-15 00:00:00', 3), now64(), mapFromArrays(
                 arrayMap(i -> concat('an-attribute-of-the-observation-', toString(i + 4000)), range(5000)),
                 arrayMap(i -> 'w', range(5000)))
         FROM numbers(200)",
    );
    let tool = sample_month_of(&database).arg("--dry-run");
    tool.run().assert_code(0);
    let report = tool.report();
    println!(
        "200 rows with 5,000 pairs on both sides: {} s",
        report["seconds"]["stream"]
    );
    assert_eq!(report["observations_processed"], 200);
    assert!(
        report["seconds"]["stream"].as_f64().unwrap() < 3.0,
        "{report}"
    );
}

#[test]
fn the_extremes_of_numbers_and_times_arrive_exactly() {
    // Sources of milliseconds, as Langfuse has them, and of microseconds.
    for (time_type, fraction) in [("DateTime64(3)", "789"), ("DateTime64(6)", "789123")] {
        let database = empty_tables("extremes", time_type);
        execute(
            &database,
            &format!(
                "INSERT INTO observations ({OBSERVATION_COLUMNS}, cost_details, usage_details,
                     prompt_version, end_time, completion_start_time, created_at, updated_at)
                 WITH
                     [reinterpret(toInt64(9223372036854775807), 'Decimal(18, 12)'),
                      reinterpret(toInt64(-9223372036854775808), 'Decimal(18, 12)'),
                      toDecimal64('0.000000000001', 12), toDecimal64('-0.000000000001', 12),
                      toDecimal64('999999.999999999999', 12), toDecimal64(0, 12)] AS decimals,
                     ['1900-01-01 00:00:00.001', '1969-12-31 23:59:59.{fraction}',
                      '1970-01-01 00:00:00.000', '2024-06-15 23:59:59.{fraction}',
                      '2100-01-01 00:00:00.{fraction}', '2261-12-31 23:59:59.{fraction}'] AS times
                 SELECT {OBSERVATION},
                     map('total', decimals[1 + number]),
                     map('total', [18446744073709551615, 9223372036854775808, 0, 1, 255, 256][1 + number]),
                     [65535, 32768, 0, 1, 255, 256][1 + number],
                     times[1 + number], times[6 - number], times[1 + number], times[6 - number]
                 FROM numbers(6)",
            ),
        );
        // The first and the last moment of the month.
        execute(
            &database,
            &format!(
                "INSERT INTO observations (id, trace_id, project_id, type, start_time, event_ts)
                 VALUES ('first', 't', 'p', 'SPAN', '2024-06-01 00:00:00', '2024-07-01 00:00:00.{fraction}'),
                        ('last', 't', 'p', 'SPAN', '2024-06-30 23:59:59.{}', '2024-07-01 00:00:00.{fraction}')",
                fraction.replace(|_| true, "9")
            ),
        );
        backfill_and_compare(&database, sample_month_of(&database));
        assert_eq!(
            ask(
                &database,
                "SELECT toUnixTimestamp64Micro(event_ts) % 1000000, toString(end_time)
                 FROM events_full WHERE span_id IN ('first', 'observation-3')
                 ORDER BY span_id LIMIT 1"
            ),
            format!("{:0<6}\t\\N", fraction)
        );
        execute(&database, &format!("DROP DATABASE {}", database.name));
    }
}

#[test]
fn prompts_of_10_megabytes_next_to_each_other_arrive_with_the_default_memory() {
    let database = empty_tables("large_prompts", "DateTime64(3)");
    // Words instead of one repeated letter, but few of them, since the server indexes them all.
    let text = "arrayStringConcat(arrayMap(i -> toString((i * 7919 + number) % 10007), range(2100000)), ' ')";
    for first in 0..8 {
        execute(
            &database,
            &format!(
                "INSERT INTO observations ({OBSERVATION_COLUMNS}, input, output)
                 SELECT {OBSERVATION}, {text}, if(number % 4 = 1, {text}, 'short')
                 FROM numbers({first}, 1)"
            ),
        );
    }
    execute(
        &database,
        &format!(
            "INSERT INTO observations ({OBSERVATION_COLUMNS}, input)
             SELECT {OBSERVATION}, 'short' FROM numbers(100, 2000)"
        ),
    );
    let size = ask_number(&database, "SELECT max(length(input)) FROM observations");
    assert!(size > 10_000_000, "{size} bytes");
    let tool = backfill_and_compare(&database, sample_month_of(&database));
    let peak = tool.report()["peak_rss_bytes"].as_u64().unwrap();
    println!("peak memory {} MiB", peak / 1024 / 1024);
    assert!(
        peak <= 512 * 1024 * 1024,
        "{peak} bytes are within the limit"
    );
}
