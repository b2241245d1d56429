//! What is left to do after a run that is done, in sentences.

use indicatif::HumanCount;

use super::report::Report;

/// Sentences for the operator about what the run of a month has left; none of a dry run.
pub(crate) fn left_to_do(report: &Report) -> Vec<String> {
    let partition = &report.partition;
    let mut sentences = Vec::new();
    if report.dry_run {
        return sentences;
    }
    if report.left_to_live_path > 0 {
        sentences.push(format!(
            "{} rows are left to Langfuse: `events-backfill verify --partition {partition}`, an hour \
             from now, says whether it has written them",
            HumanCount(report.left_to_live_path)
        ));
    }
    if report.traces_changed_after_writing > 0 {
        sentences.push(format!(
            "{} traces changed after events were written: `events-backfill repair --partition \
             {partition} --optimize` brings their events up to date",
            HumanCount(report.traces_changed_after_writing)
        ));
    }
    if let Some(rows) = report.rows_to_merge.filter(|&rows| rows > 0) {
        sentences.push(format!(
            "{} rows stand twice until ClickHouse merges them, and v4 counts both: \
             `events-backfill repair --partition {partition} --optimize` merges them now",
            HumanCount(rows)
        ));
    }
    sentences
}
