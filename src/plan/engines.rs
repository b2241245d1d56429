//! What a run takes with each engine, and which one suits.

use serde::Serialize;

use super::disk::RootSpans;
use crate::backfill::pipeline::limits::first_part_bytes;
use crate::backfill::pushdown::insert_threads;
use crate::cli::options::{Engine, Options};
use crate::inspect::Inspected;
use crate::memory::ByteSize;
use crate::progress::words::about;

/// Bytes that travel for a row if the server joins: 144 from it, its keys and those compared for versions,
/// and 33 to it, the lists in statements (measured: 1.02M observations of 170,000 traces, uncompressed).
const BYTES_PER_ROW: u64 = 177;
/// Uncompressed bytes of events that a server joins and inserts per second, reading keys included: two cores
/// with `events_full` and its text indexes (measured: 74,000 events of 1.35 KB).
const JOINED_PER_SECOND: u64 = 95 << 20;
/// The server holds the rows of a part three times over.
const COPIES_OF_PART: u64 = 3;
/// From this many bytes over the network on, the network limits a run: two hours at 1 Gbit/s.
const MANY_BYTES: u64 = 1 << 40;
/// Below this much memory, the server's statements have to be divided, which makes them slow.
const LITTLE_MEMORY: u64 = 8 << 30;

/// A run with one engine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct EngineForecast {
    /// Its name, for `--engine`.
    pub name: &'static str,
    /// Estimated duration in seconds, if known.
    pub seconds: Option<f64>,
    /// Bytes over the network, both ways, uncompressed.
    pub network_bytes: u64,
    /// Memory that its statements take on the server, in bytes.
    pub server_memory_bytes: u64,
}

/// Both engines.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Engines {
    /// This program, with its trace store.
    pub embedded: EngineForecast,
    /// The server itself.
    pub clickhouse: EngineForecast,
    /// The engine that suits, and why.
    pub suggestion: String,
}

/// Bytes and rows that both are computed from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amounts<'a> {
    /// Observations that become events.
    pub rows: u64,
    /// Uncompressed bytes that the embedded engine reads.
    pub read_bytes: u64,
    /// Uncompressed bytes of the events of observations.
    pub write_bytes: u64,
    /// Root spans, if any.
    pub root_spans: Option<&'a RootSpans>,
    /// What the embedded engine takes, in seconds.
    pub embedded_seconds: Option<f64>,
}

impl Engines {
    /// Compares the engines for a month.
    pub(super) fn new(options: &Options, inspected: &Inspected, amounts: Amounts<'_>) -> Self {
        let root_spans = amounts.root_spans.map_or((0, 0), |root_spans| {
            (root_spans.rows, root_spans.bytes.uncompressed)
        });
        let events = amounts.rows + root_spans.0;
        let event_bytes = amounts.write_bytes + root_spans.1;
        let embedded = EngineForecast {
            name: Engine::Embedded.name(),
            seconds: amounts.embedded_seconds,
            network_bytes: amounts.read_bytes + event_bytes,
            server_memory_bytes: statements_take(options, inspected, 1),
        };
        let threads = insert_threads(&inspected.server, options.concurrency);
        let clickhouse = EngineForecast {
            name: Engine::ClickHouse.name(),
            seconds: Some(event_bytes as f64 / JOINED_PER_SECOND as f64),
            network_bytes: events * BYTES_PER_ROW,
            server_memory_bytes: statements_take(options, inspected, threads as u64),
        };
        Self {
            suggestion: suggestion(inspected, &embedded),
            embedded,
            clickhouse,
        }
    }

    /// A line for each.
    pub(super) fn lines(&self) -> Vec<(String, String)> {
        let mut lines = vec![("Engine".to_owned(), self.suggestion.clone())];
        lines.extend([&self.embedded, &self.clickhouse].map(|engine| {
            let time = engine.seconds.map_or("unknown time".to_owned(), about);
            (
                format!("  {}", engine.name),
                format!(
                    "{time}; {} over the network, uncompressed; {} of the server's memory",
                    ByteSize(engine.network_bytes),
                    ByteSize(engine.server_memory_bytes)
                ),
            )
        }));
        lines
    }
}

/// Memory for the parts that all statements write at once.
fn statements_take(options: &Options, inspected: &Inspected, threads_of_each: u64) -> u64 {
    let server = &inspected.server;
    let writers = options.concurrency as u64 * threads_of_each;
    let part = first_part_bytes(
        options.part_bytes.0,
        server.memory,
        server.statement_memory,
        usize::try_from(writers).unwrap_or(usize::MAX),
    );
    writers * part * COPIES_OF_PART
}

fn suggestion(inspected: &Inspected, embedded: &EngineForecast) -> String {
    let memory = inspected.server.memory;
    if let Some(column) = inspected.mapping.not_as_sql().first() {
        return format!("embedded: the other one cannot fill column {column} with JSON");
    }
    match memory.filter(|&bytes| bytes < LITTLE_MEMORY) {
        Some(bytes) => format!(
            "embedded: with {} of memory, the server would have to divide its statements",
            ByteSize(bytes)
        ),
        None if embedded.network_bytes >= MANY_BYTES => format!(
            "clickhouse: {} need not travel over the network",
            ByteSize(embedded.network_bytes)
        ),
        None => "embedded: the month is small enough to travel over the network".to_owned(),
    }
}
