//! What a run leaves on this machine: the directory of a month, the checkpoint from which it can go on,
//! and the report.

pub(crate) mod checkpoint;
pub(crate) mod counts;
pub(crate) mod directory;
pub(crate) mod files;
pub(crate) mod finding;
pub(crate) mod history;
pub(crate) mod left_to_do;
mod output_file;
pub(crate) mod report;
pub(crate) mod resume;
