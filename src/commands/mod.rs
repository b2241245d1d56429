//! The commands that are not a room of their own, for as many months as were asked for.

pub mod each_partition;
pub mod run;
mod run_summary;
pub mod status;
