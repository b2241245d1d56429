//! The backfill of one partition, once it is inspected: load traces, stream, report. And a repair, which
//! sends some rows the same way.

pub(crate) mod attempts;
pub(crate) mod block_stream;
pub(crate) mod error;
pub(crate) mod experiments;
pub(crate) mod guard;
mod job;
pub(crate) mod load;
mod mend;
pub(crate) mod pipeline;
pub(crate) mod remote_lookup;
mod stream;
mod target;
pub(crate) mod wanted_rows;

pub(crate) use job::{Ended, run};
pub(crate) use mend::{Mending, mend};
pub(crate) use target::{require_alone, target_keys};
