//! What keeps a backfill right beside a deployment that is alive: which rows the target has
//! already, which version of an observation counts, which traces changed since they were loaded,
//! and what `events_core` lacks.

pub mod block_stream;
pub mod core_view;
pub mod guard;
pub mod leftover_inserts;
pub mod observation_versions;
pub mod recovery;
pub mod roots;
pub mod row_hash;
pub mod target_keys;
pub mod trace_changes;
