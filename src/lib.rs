//! Fills Langfuse's ClickHouse events table from its observations and traces,
//! in bounded memory.
//!
//! ```text
//!             inspect                    trace_store
//!  ClickHouse ─────▶ segments   traces ──▶ load ──▶ RocksDB, one column family per day
//!      │                                                │ look-ups, many at once and sorted
//!      └── pipeline: a segment's blocks ──▶ enrich ─────┘
//!                                             └──▶ one streamed insert a segment ──▶ ClickHouse
//! ```
//!
//! Imports point down only: `tests/integration/house.rs` has the order of the modules, and sees to it.
//! `commands` carry out what `cli` was told; `page` shows runs in a browser; `plan` says what a run would do, `verify` what came of it,
//! and `repair` mends what it found; `backfill` is one month's work, and keeps its `state` on this
//! machine; `throttle` says how fast it may go, `control` lets its owner change that, and `telemetry` tells
//! how it goes; `inspect` knows the server's tables and the statements that read them; `enrich` makes
//! events, as `mapping` says; `native`, `clickhouse` and `trace_store` know nothing of all that, nor of
//! each other.

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

/// What tests and benchmarks reach of the inside. It changes with the program, and is promised to
/// nobody.
#[doc(hidden)]
pub mod internals {
    pub use crate::cli::Environment;
    pub use crate::cli::arguments::Arguments;
    pub use crate::cli::options::{Options, Request};
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
