//! Assembles the report of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::context::Context;
use crate::mapping::Source;
use crate::memory::peak_resident_bytes;
use crate::progress::words;
use crate::state::checkpoint::Checkpoint;
use crate::state::counts::SegmentCounts;
use crate::state::report::{Report, Seconds, TraceId};
use crate::throttle::ThrottledSeconds;

/// Time and events of this process.
#[derive(Debug, Default)]
pub(super) struct Spent {
    pub(super) load: Duration,
    /// Time per source.
    pub(super) stream: [Duration; 2],
    pub(super) insert: Duration,
    pub(super) store_bytes: u64,
    /// Rows of each source done before this process started.
    pub(super) before: [u64; 2],
    /// Unmerged duplicates, if everything was written again.
    pub(super) rows_to_merge: Option<u64>,
}

impl Spent {
    /// Starts from a checkpoint.
    pub(super) fn after(checkpoint: &Checkpoint) -> Self {
        Self {
            before: Source::BOTH.map(|source| checkpoint.counts(source).observations),
            ..Self::default()
        }
    }
}

/// The run so far, over this process and earlier ones.
pub(super) fn report(
    context: &Context,
    checkpoint: &Checkpoint,
    spent: &Spent,
    failed: bool,
) -> Report {
    let [observations, root_spans] = Source::BOTH.map(|source| checkpoint.counts(source));
    let [stream, root_span_stream] = spent.stream.map(|time| time.as_secs_f64());
    let now =
        |counts: SegmentCounts, source: Source| counts.observations - spent.before[source as usize];
    let target = &context.inspected.target;
    let target_state = checkpoint.target.as_ref();
    let remote = &checkpoint.remote;
    let subject = &context.options.subject;
    Report {
        partition: context.options.partition.to_string(),
        shard: context.options.shard.map(|shard| shard.to_string()),
        target_table: format!("{}.{}", target.database, target.name),
        dry_run: context.options.dry_run,
        resumed: context.resumed,
        traces_loaded: checkpoint.traces(),
        observations_processed: observations.observations
            + observations.left_out.live
            + observations.left_out.already_there
            + observations.left_out.live_path,
        events_inserted: observations.inserted,
        observations_without_trace: observations.without_trace,
        traces_superseded: subject
            .root_spans
            .then_some(root_spans.superseded + root_spans.left_out.superseded),
        root_spans_inserted: subject.root_spans.then_some(root_spans.inserted),
        spans_in_experiments: subject
            .experiments
            .then_some(observations.in_experiments + root_spans.in_experiments),
        written_by_earlier_attempts: observations.left_out.written_before
            + root_spans.left_out.written_before,
        observations_superseded: observations.left_out.superseded,
        left_to_live_rows: observations.left_out.live + root_spans.left_out.live,
        root_spans_left_to_live_roots: root_spans.left_out.live_root,
        root_spans_left_to_observations: root_spans.left_out.root_observation,
        items_left_to_live_spans: checkpoint
            .experiments
            .map_or(0, |found| found.items_left_to_live_spans),
        already_there: observations.left_out.already_there + root_spans.left_out.already_there,
        left_to_live_path: observations.left_out.live_path + root_spans.left_out.live_path,
        until: target_state
            .and_then(|target| target.until)
            .map(words::moment),
        traces_reloaded: checkpoint.traces_reloaded,
        traces_changed_after_writing: checkpoint.traces_changed,
        rows_to_merge: spent.rows_to_merge,
        traces_remote: remote.found,
        traces_not_found: remote.asked - remote.found.min(remote.asked),
        traces_not_found_listed: remote
            .not_found
            .iter()
            .map(|(project, trace)| TraceId::new(project, trace))
            .collect(),
        // Set by the caller.
        ended_with: None,
        errors: u64::from(failed),
        retries: context.retries.repeated(),
        segments_total: checkpoint.segments.as_ref().map_or(0, Vec::len) as u64,
        segments_done: checkpoint.done.len() as u64,
        throttled_seconds: by_name(context.throttled()),
        peak_rss_bytes: peak_resident_bytes(),
        store_bytes: spent.store_bytes,
        seconds: Seconds {
            load: spent.load.as_secs_f64(),
            stream,
            root_spans: root_span_stream,
            insert: spent.insert.as_secs_f64(),
            total: context.started.elapsed().as_secs_f64(),
        },
        observations_per_second: per_second(now(observations, Source::Observations), stream),
        root_spans_per_second: per_second(now(root_spans, Source::Traces), root_span_stream),
    }
}

/// The same, with owned names that can be deserialised.
pub(super) fn by_name(throttled: ThrottledSeconds) -> BTreeMap<String, f64> {
    let throttled = throttled.into_iter();
    throttled
        .map(|(reason, seconds)| (reason.to_owned(), seconds))
        .collect()
}

fn per_second(rows: u64, seconds: f64) -> f64 {
    match seconds > 0.0 {
        true => rows as f64 / seconds,
        false => 0.0,
    }
}
