//! Fills the ClickHouse events table of Langfuse v4 from observations and traces, in bounded memory.
//!
//! ```text
//!             inspect                    trace_store
//!  ClickHouse ─────▶ segments   traces ──▶ load ──▶ RocksDB, one column family per day
//!      │                                                │ look-ups, batched and sorted
//!      └── pipeline: a segment's blocks ──▶ enrich ─────┘
//!                                             └──▶ one streamed insert per segment ──▶ ClickHouse
//! ```
//!
//! Imports point down only; `tests/integration/house.rs` defines the order of the modules and enforces it.
//!
//! - `cli` parses the request, and `commands` execute it.
//! - `backfill` processes one month and keeps its `state` on disk. `plan` estimates a run, `verify` checks
//!   its result, and `repair` fixes what `verify` finds.
//! - `throttle` limits the speed of a run, and `control` lets its owner change it. `progress`, `telemetry`
//!   and `page` show the run in the terminal, to Prometheus and in a browser.
//! - `inspect` knows the server's tables and the statements that read them. `enrich` builds events
//!   according to `mapping`.
//! - `native`, `clickhouse` and `trace_store` depend on none of these, nor on each other.

#![forbid(unsafe_code)]

mod backfill;
mod cli;
mod clickhouse;
mod commands;
mod control;
mod enrich;
mod error;
mod inspect;
mod mapping;
mod memory;
mod native;
mod page;
mod partition;
mod plan;
mod progress;
mod repair;
mod session;
mod shutdown;
mod state;
mod telemetry;
mod throttle;
mod trace_store;
mod verify;

pub use commands::main;

/// Internals for tests and benchmarks, without any promise of stability.
#[doc(hidden)]
pub mod internals {
    pub use crate::cli::Environment;
    pub use crate::cli::arguments::Arguments;
    pub use crate::cli::options::{Options, Request, SegmentRows};
    pub use crate::cli::variables::VARIABLES;
    pub use crate::clickhouse::{
        Compression, Connection, ConnectionOptions, NativeStream, Password, Statement, TableColumn,
        TableInfo, Trust, quoting,
    };
    pub use crate::commands::each_partition::{self, Looked};
    pub use crate::enrich::{Enricher, SetAside, Unknown};
    pub use crate::error::Error;
    pub use crate::inspect::segments::{self, Boundary, Segment};
    pub use crate::inspect::share::is_of_share;
    pub use crate::inspect::statements::of_segment;
    pub use crate::mapping::{Mapping, Source, Wanted};
    pub use crate::memory::buffer_pool::BufferPool;
    pub use crate::native::{
        ArrayCursor, Block, BlockReader, FixedCursor, Layout, NativeError, NullableStringCursor,
        Share, StringArrayWriter, StringCursor, put_block_header, put_column_header, put_string,
        put_varint,
    };
    pub use crate::partition::{Day, Shard, ShareOfMonth};
    pub use crate::session::Session;
    pub use crate::state::checkpoint::{Checkpoint, RunIdentity};
    pub use crate::state::counts::SegmentCounts;
    pub use crate::trace_store::{DayWriter, Reach, SeenTraces, TraceRecord, TraceStore, key};
}
