//! Sentences about what is left to do after a finished run.

use indicatif::HumanCount;

use super::finding::Finding;
use super::report::Report;
use crate::inspect::LEFT_TO_LANGFUSE;
use crate::progress::moment::Moment;

/// Sentences for the operator about what a run left to do. The run last wrote at `written_at`, in seconds
/// since 1970. Empty for a dry run. `since` is what verify or repair found later, which is newer than the
/// run's report.
pub(crate) fn left_to_do(report: &Report, written_at: u64, since: Option<&Finding>) -> Vec<String> {
    let partition = &report.partition;
    let mut sentences = Vec::new();
    if report.dry_run {
        return sentences;
    }
    let is_compared = since.is_some_and(|finding| finding.compared_until >= written_at);
    if report.left_to_live_path > 0 && !is_compared {
        // Rounded up to the minute.
        let from = written_at + u64::try_from(LEFT_TO_LANGFUSE / 1_000_000).unwrap_or(0) + 59;
        sentences.push(format!(
            "{} rows are left for Langfuse to write: run `events-backfill verify --partition {partition}`, \
             with the options of the run, after {} UTC to check them",
            HumanCount(report.left_to_live_path),
            Moment(from).to_minute()
        ));
    }
    if since.is_some() {
        return sentences;
    }
    if report.traces_changed_after_writing > 0 {
        sentences.push(format!(
            "{} traces changed after events were written: `events-backfill repair --partition \
             {partition} --optimize`, with the options of the run, brings their events up to date",
            HumanCount(report.traces_changed_after_writing)
        ));
    }
    if let Some(rows) = report.rows_to_merge.filter(|&rows| rows > 0) {
        sentences.push(format!(
            "{} rows are in the table twice until ClickHouse merges them, and v4 counts both: \
             `events-backfill repair --partition {partition} --optimize`, with the options of the run, merges \
             them now",
            HumanCount(rows)
        ));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-06-01 00:00:01 UTC
    const WRITTEN_AT: u64 = 1_717_200_001;

    fn report() -> Report {
        Report {
            partition: "202405".to_owned(),
            left_to_live_path: 7,
            traces_changed_after_writing: 8,
            rows_to_merge: Some(9),
            ..Report::default()
        }
    }

    #[test]
    fn what_a_later_command_has_looked_at_is_left_no_more() {
        let left = |since: Option<&Finding>| left_to_do(&report(), WRITTEN_AT, since);
        let all = left(None);
        for (sentence, word) in all.iter().zip(["7 rows", "8 traces", "9 rows"]) {
            assert!(sentence.starts_with(word), "{sentence}");
        }
        assert_eq!(all.len(), 3);
        // An hour before it looked, and so nothing of what is left to Langfuse.
        let mut verified = Finding {
            compared_until: WRITTEN_AT - 3_540,
            ..Finding::default()
        };
        assert_eq!(left(Some(&verified)), all[..1]);
        verified.compared_until = WRITTEN_AT;
        assert_eq!(left(Some(&verified)), [""; 0]);
    }

    #[test]
    fn the_moment_from_which_langfuse_has_written_is_told_by_the_clock() {
        let sentence = left_to_do(&report(), WRITTEN_AT, None).remove(0);
        assert!(
            sentence.contains("after 2024-06-01 01:01 UTC"),
            "{sentence}"
        );
    }
}
