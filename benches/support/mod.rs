//! What the benchmarks work on: blocks as ClickHouse would send them, and a store with traces. All
//! of it derives from row numbers, so that it is the same every time.

use std::path::Path;
use std::sync::Arc;

use events_backfill::internals::{
    Day, DayWriter, Layout, Mapping, SeenTraces, Source, StringArrayWriter, TableColumn, TableInfo,
    TraceRecord, TraceStore, Wanted, key, put_block_header, put_column_header, put_string,
};
use serde_bytes::Bytes as Text;
use tempfile::TempDir;

/// Rows of a block, as many as the program reads at once.
pub const BLOCK_ROWS: usize = 8_192;

/// The day of all observations: 2024-06-01.
pub const FIRST_DAY: Day = 19_875;

const PROJECT: &[u8] = b"clw8q2k9v0001support";

/// How much text an observation has.
#[derive(Clone, Copy)]
pub enum Payload {
    Narrow,
    Typical,
    Wide,
}

impl Payload {
    pub const ALL: [Payload; 3] = [Payload::Narrow, Payload::Typical, Payload::Wide];

    pub fn name(self) -> &'static str {
        match self {
            Payload::Narrow => "narrow",
            Payload::Typical => "typical",
            Payload::Wide => "wide",
        }
    }

    /// Bytes of input and output together.
    fn bytes(self) -> usize {
        match self {
            Payload::Narrow => 200,
            Payload::Typical => 1_000,
            Payload::Wide => 20_000,
        }
    }
}

/// How Langfuse's observations become rows of its `events_full`.
pub fn mapping() -> Arc<Mapping> {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench-data/schema.sql");
    let schema = std::fs::read_to_string(schema).expect("bench-data/schema.sql can be read");
    let [observations, traces, events] =
        ["observations", "traces", "events_full"].map(|name| table(&schema, name));
    let wanted = Wanted {
        trace_metadata: true,
        experiments: false,
    };
    let mapping = Mapping::new(
        Source::Observations,
        &observations,
        &traces,
        &events,
        wanted,
    );
    Arc::new(mapping.expect("the tables fit"))
}

/// A table as the server would describe it, from its statement in schema.sql.
fn table(schema: &str, name: &str) -> TableInfo {
    let statement = schema
        .split_once(&format!("CREATE TABLE {name}\n"))
        .and_then(|(_, rest)| rest.split_once("\n)\n"))
        .map(|(statement, _)| statement)
        .expect("the table is in schema.sql");
    TableInfo {
        database: "default".to_owned(),
        name: name.to_owned(),
        uuid: String::new(),
        engine: "ReplacingMergeTree".to_owned(),
        partition_key: String::new(),
        primary_key: String::new(),
        has_views: false,
        keeps_block_numbers: false,
        engine_full: String::new(),
        columns: statement.lines().filter_map(column).collect(),
    }
}

/// A column from its line: four spaces, the name, the type, and what else there is.
fn column(line: &str) -> Option<TableColumn> {
    let line = line.strip_prefix("    ")?;
    let (name, rest) = line.split_once(' ')?;
    if name.is_empty() || name.starts_with("--") || name == "INDEX" {
        return None;
    }
    let mut depth = 0;
    let end = rest.find(|character| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ' ' | ',' => return depth == 0,
            _ => {}
        }
        false
    });
    let data_type = &rest[..end.unwrap_or(rest.len())];
    // A default that is computed stands on the next line.
    let computed = match name.starts_with("calculated_") {
        true => "MATERIALIZED",
        false => ["MATERIALIZED", "ALIAS"]
            .into_iter()
            .find(|kind| rest.contains(kind))
            .unwrap_or_default(),
    };
    Some(TableColumn {
        name: name.to_owned(),
        data_type: data_type.to_owned(),
        default_kind: computed.to_owned(),
    })
}

/// The number of the trace of an observation, of `traces` on its day: spread without an order.
pub fn trace_of_row(row: usize, traces: usize) -> usize {
    row * 7_919 % traces
}

fn trace_id(number: usize) -> String {
    // As random ids are: neighbours in number are not neighbours in order.
    let mixed = (number as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    format!("{mixed:032x}")
}

/// The key of a trace in the store.
pub fn trace_key(number: usize) -> Vec<u8> {
    let mut out = Vec::new();
    key::encode(&mut out, PROJECT, trace_id(number).as_bytes());
    out
}

/// A store with so many days of so many traces each. Those of the first day have the numbers from 0.
pub fn store_of_traces(days: u16, traces_per_day: usize) -> (TempDir, TraceStore) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("store");
    let store = TraceStore::create(&path, 128 << 20, "benchmark").expect("a store can be made");
    let mut seen = SeenTraces::new(u64::from(days) * traces_per_day as u64, 64 << 20);
    for day in 0..days {
        let first = usize::from(day) * traces_per_day;
        let mut entries: Vec<(Vec<u8>, Vec<u8>)> = (first..first + traces_per_day)
            .map(|number| (trace_key(number), trace_record(number)))
            .collect();
        entries.sort_unstable();
        let mut writer = DayWriter::new(&store, FIRST_DAY + day, 1).expect("a new day");
        for (key, record) in &entries {
            writer.put(key, record, &mut seen).expect("it is in order");
        }
        writer.finish().expect("the day can be stored");
    }
    store
        .settle_moved_traces(&|| false)
        .expect("the store answers");
    (directory, store)
}

fn trace_record(number: usize) -> Vec<u8> {
    let (user, session) = (
        format!("user-{}", number % 20_000),
        format!("session-{number}"),
    );
    let texts = [
        &b"summarise-document"[..],
        user.as_bytes(),
        match number.is_multiple_of(3) {
            true => session.as_bytes(),
            false => b"",
        },
        b"2024.7",
        b"",
    ];
    let record = TraceRecord {
        event_ts: 1_717_200_000_000_000 + number as i64,
        is_deleted: false,
        day: 19_875,
        public: number.is_multiple_of(16),
        bookmarked: number % 16 == 1,
        texts: std::array::from_fn(|place| {
            Text::new(texts.get(place).copied().unwrap_or_default())
        }),
        tags: vec![Text::new(b"customer:acme")],
        metadata: vec![(Text::new(b"customer_tier"), Text::new(b"enterprise"))],
    };
    let mut out = Vec::new();
    record.encode(&mut out).expect("a record can be encoded");
    out
}

/// A block of observations as the server would send it, with as many columns and types as it has.
/// Each observation belongs to one of `traces` traces of its day.
pub fn native_block(mapping: &Mapping, payload: Payload, traces: usize) -> Vec<u8> {
    let columns = mapping.result_columns();
    let mut out = Vec::new();
    put_block_header(&mut out, columns.len(), BLOCK_ROWS);
    for (name, data_type) in &columns {
        put_column_header(&mut out, name, &data_type.to_string());
        match name.as_str() {
            "project_id" => put_texts(&mut out, |_| PROJECT.to_vec()),
            "trace_id" => put_texts(&mut out, |row| {
                trace_id(trace_of_row(row, traces)).into_bytes()
            }),
            "span_id" | "parent_span_id" => {
                put_texts(&mut out, |row| trace_id(row + 1_000_000).into_bytes());
            }
            "input" => put_texts(&mut out, |row| prose(row, payload.bytes() * 7 / 10)),
            "output" => put_texts(&mut out, |row| prose(row, payload.bytes() * 3 / 10)),
            "helper_day" => {
                (0..BLOCK_ROWS).for_each(|_| out.extend_from_slice(&FIRST_DAY.to_le_bytes()));
            }
            "helper_metadata_names" => put_pairs(&mut out, ["region", "attempt"]),
            "helper_metadata_values" => put_pairs(&mut out, ["eu", "1"]),
            _ => put_values(
                &mut out,
                &data_type.layout().expect("it is known"),
                BLOCK_ROWS,
            ),
        }
    }
    out
}

fn put_texts(out: &mut Vec<u8>, text: impl Fn(usize) -> Vec<u8>) {
    (0..BLOCK_ROWS).for_each(|row| put_string(out, &text(row)));
}

/// Words, between a half and one and a half times `bytes` of them.
fn prose(row: usize, bytes: usize) -> Vec<u8> {
    let length = bytes * (50 + row * 37 % 101) / 100;
    b"the model answers a question about an invoice "
        .iter()
        .copied()
        .cycle()
        .skip(row % 40)
        .take(length)
        .collect()
}

fn put_pairs(out: &mut Vec<u8>, elements: [&str; 2]) {
    let mut column = StringArrayWriter::new(out, BLOCK_ROWS);
    for _ in 0..BLOCK_ROWS {
        for element in elements {
            column.push_element(element.as_bytes());
        }
        column.end_row();
    }
}

/// Values of any type: short texts, every second one null, two elements to an array.
fn put_values(out: &mut Vec<u8>, layout: &Layout, count: usize) {
    match layout {
        Layout::Fixed(width) => out.extend((0..count * width).map(|byte| byte as u8 & 1)),
        Layout::String => (0..count).for_each(|_| put_string(out, b"a short text")),
        Layout::Nullable(inner) => {
            out.extend((0..count).map(|row| row as u8 & 1));
            put_values(out, inner, count);
        }
        Layout::Array(element) => {
            put_offsets(out, count);
            put_values(out, element, count * 2);
        }
        Layout::Map(key, value) => {
            put_offsets(out, count);
            put_values(out, key, count * 2);
            put_values(out, value, count * 2);
        }
        Layout::Tuple(elements) => {
            elements
                .iter()
                .for_each(|element| put_values(out, element, count));
        }
    }
}

fn put_offsets(out: &mut Vec<u8>, count: usize) {
    (1..=count as u64).for_each(|row| out.extend_from_slice(&(row * 2).to_le_bytes()));
}
