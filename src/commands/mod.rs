//! Command dispatch, runs over one or several months, and the small commands.

mod all_shards;
mod control;
mod dispatch;
pub mod each_partition;
mod generate;
mod partition_status;
mod report;
pub(crate) mod run;
mod run_summary;
mod sharded_months;
mod state_dirs;
pub(crate) mod status;

pub use dispatch::main;
