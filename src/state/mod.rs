//! What a run leaves on this machine: the directory of a month, the checkpoint from which it can go on,
//! and the report.

pub mod checkpoint;
pub mod counts;
pub(crate) mod directory;
pub mod files;
mod output_file;
pub mod report;
pub mod resume;
