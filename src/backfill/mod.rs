//! The backfill of one partition, once it is inspected: load traces, stream, report. And a repair, which
//! sends some rows the same way.

pub mod block_stream;
pub mod error;
pub mod experiments;
pub mod guard;
mod job;
pub mod load;
mod mend;
pub mod pipeline;
pub mod remote_lookup;
mod stream;
mod target;
pub mod wanted_rows;

pub use job::{Ended, run};
pub use mend::{Mending, mend};
pub use target::{require_alone, target_keys};
