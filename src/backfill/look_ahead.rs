//! Reads the keys of segments before the server writes them, so that the traces of many segments
//! that are not near can be looked up at once. The first few segments are read at once, the others
//! while these are written.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::task::{JoinHandle, JoinSet};

use super::pipeline::Pipeline;
use super::pushdown::{Pushdown, TraceName};
use crate::inspect::segments::Segment;

/// Segments whose keys were read, and their traces not yet looked up.
type Read = (Vec<Segment>, Vec<TraceName>);

/// Reads ahead of the pipeline.
pub(super) struct LookAhead {
    pipeline: Arc<Pipeline>,
    segments_at_once: usize,
    /// Not read yet, in the order of days.
    left: Vec<Segment>,
    handed_out: BTreeSet<u32>,
    reading: Option<JoinHandle<Read>>,
}

impl LookAhead {
    /// Begins with the first of these segments.
    pub(super) fn new(
        pipeline: &Arc<Pipeline>,
        mut segments: Vec<Segment>,
        segments_at_once: usize,
    ) -> Self {
        segments.sort_by_key(|segment| segment.from.as_ref().map(|from| from.day));
        let others = segments.split_off(segments.len().min(segments_at_once));
        let reading = read(Arc::clone(pipeline), segments, segments_at_once);
        Self {
            pipeline: Arc::clone(pipeline),
            segments_at_once,
            left: others,
            handed_out: BTreeSet::new(),
            reading: Some(tokio::spawn(reading)),
        }
    }

    /// The segments to write next, of those that remain, and their traces to look up before.
    pub(super) async fn next(&mut self, remaining: Vec<Segment>) -> Read {
        let was_handed_out = |segment: &Segment| self.handed_out.contains(&segment.number);
        let begun: Vec<Segment> = remaining
            .iter()
            .filter(|s| was_handed_out(s))
            .cloned()
            .collect();
        if !begun.is_empty() {
            return (begun, Vec::new());
        }
        let ended = match self.reading.take() {
            Some(reading) => reading.await.ok(),
            None => None,
        };
        let Some((segments, unknown)) = ended else {
            // They are read when they are written.
            return (remaining, Vec::new());
        };
        self.handed_out
            .extend(segments.iter().map(|segment| segment.number));
        self.left
            .retain(|segment| !self.handed_out.contains(&segment.number));
        if !self.left.is_empty() {
            let (pipeline, left) = (Arc::clone(&self.pipeline), self.left.clone());
            self.reading = Some(tokio::spawn(read(pipeline, left, self.segments_at_once)));
        }
        (segments, unknown)
    }
}

impl Drop for LookAhead {
    fn drop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.abort();
        }
    }
}

/// Reads the keys of segments, as many as memory allows.
async fn read(pipeline: Arc<Pipeline>, segments: Vec<Segment>, at_once: usize) -> Read {
    let (mut done, mut unknown, mut is_enough) = (Vec::new(), Vec::new(), false);
    for some in segments.chunks(at_once.max(1)) {
        pipeline.destination.throttle.may_begin().await;
        let mut reading = JoinSet::new();
        for segment in some {
            let (pipeline, segment) = (Arc::clone(&pipeline), segment.clone());
            reading.spawn(async move {
                match &pipeline.pushdown {
                    // If it fails, it is read again when the segment is written, with retries.
                    Some(pushdown) => pushdown.read_ahead(&segment).await.ok(),
                    None => None,
                }
            });
        }
        while let Some(of_segment) = reading.join_next().await {
            match of_segment {
                Ok(Some(of_segment)) => unknown.extend(of_segment),
                _ => is_enough = true,
            }
        }
        done.extend_from_slice(some);
        let pushdown = pipeline.pushdown.as_ref();
        if is_enough || pushdown.is_some_and(Pushdown::has_read_enough) {
            break;
        }
    }
    (done, unknown)
}
