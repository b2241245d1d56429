//! Fills Langfuse's ClickHouse events table from its observations and traces,
//! in bounded memory.
//!
//! ```text
//!             plan                       trace_store
//!  ClickHouse ─────▶ segments   traces ──▶ load ──▶ RocksDB, one column family per day
//!      │                                                │ look-ups, batched and sorted
//!      └── pipeline: a segment's blocks ──▶ enrich ─────┘
//!                                             └──▶ batches ──▶ send ──▶ ClickHouse
//! ```
//!
//! Layers point one way: `partitions` has a `job` done for each partition; `job` puts the
//! others together; `pipeline`, `load`, `elsewhere` and `experiments` know ClickHouse and the
//! store; `send` knows batches and ClickHouse; `enrich` knows blocks, the mapping and the
//! store; `native` and `trace_store` know neither each other nor ClickHouse. Beside a job,
//! `forecast` says what it would do, `status` how far it is, and `verify` what came of it.

#![forbid(unsafe_code)]

pub mod backfill;
pub mod cli;
pub mod clickhouse;
pub mod commands;
pub mod enrich;
pub mod error;
pub mod inspect;
pub mod mapping;
pub mod memory;
pub mod native;
pub mod partition;
pub mod plan;
pub mod progress;
pub mod repair;
pub mod session;
pub mod shutdown;
pub mod state;
pub mod trace_store;
pub mod verify;
