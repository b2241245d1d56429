//! What a run keeps on this machine: the directory of a month, the checkpoint to continue from, and the
//! report.

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
