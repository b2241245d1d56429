//! Backfills one inspected partition: load traces, stream rows, report. A repair sends only some
//! rows the same way.

pub(crate) mod block_stream;
mod context;
pub(crate) mod error;
pub(crate) mod experiments;
pub(crate) mod guard;
mod job;
mod journal;
mod known_rows;
pub(crate) mod load;
mod look_ahead;
mod mend;
pub(crate) mod pipeline;
mod prepare;
pub(crate) mod pushdown;
mod recorder;
pub(crate) mod remote_lookup;
mod run_report;
mod segment_keys;
mod stream;
mod target;
mod trace_days;
mod views;
pub(crate) mod wanted_rows;
pub(crate) mod work_attempts;

pub(crate) use context::{Context, target_month};
pub(crate) use job::{Ended, run};
pub(crate) use mend::mend;
pub(crate) use target::require_alone;
