//! Builds the span tree of one trace and assigns spans to items.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::pointers::Pointers;
use crate::backfill::error::WorkError;
use crate::state::counts::ExperimentCounts;
use crate::trace_store::{ExperimentWriter, key};

/// Approximate memory per span, besides its ids.
const BYTES_PER_SPAN: usize = 96;

/// The id of a trace's root span.
pub(super) fn root_span_id(trace: &[u8]) -> Vec<u8> {
    [b"t-", trace].concat()
}

/// The spans of the current trace.
pub(super) struct Spans {
    project: Vec<u8>,
    trace: Vec<u8>,
    /// Whether an item points into the trace.
    is_wanted: bool,
    /// Ids and parents.
    spans: Vec<(Vec<u8>, Vec<u8>)>,
    /// Ids of deleted spans. They are no events, but connect the spans below them to those above.
    deleted: HashSet<Vec<u8>>,
    bytes: usize,
    max_bytes: usize,
}

impl Spans {
    /// Starts without a trace, with up to `max_bytes` of memory.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            project: Vec::new(),
            trace: Vec::new(),
            is_wanted: false,
            spans: Vec::new(),
            deleted: HashSet::new(),
            bytes: 0,
            max_bytes,
        }
    }

    pub(super) fn is_of(&self, project: &[u8], trace: &[u8]) -> bool {
        self.project == project && self.trace == trace
    }

    /// Starts the next trace, which may be one that was not requested.
    pub(super) fn begin(
        &mut self,
        project: &[u8],
        trace: &[u8],
        pointers: &BTreeMap<Vec<u8>, Pointers>,
    ) {
        self.project = project.to_vec();
        self.trace = trace.to_vec();
        self.spans.clear();
        self.deleted.clear();
        self.bytes = 0;
        let pointers = pointers.get(&self.key());
        self.is_wanted = pointers.is_some_and(|pointers| !pointers.is_empty());
    }

    fn key(&self) -> Vec<u8> {
        let mut encoded = Vec::new();
        key::encode(&mut encoded, &self.project, &self.trace);
        encoded
    }

    /// Adds a span. Without a parent it belongs below the trace's root span.
    pub(super) fn add(
        &mut self,
        id: &[u8],
        parent: &[u8],
        is_deleted: bool,
    ) -> Result<(), WorkError> {
        if !self.is_wanted {
            return Ok(());
        }
        let root = root_span_id(&self.trace);
        // The trace has a root span with that id anyway.
        let is_deleted = is_deleted && id != root;
        let parent = match (id == root, parent.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => root,
            (false, false) => parent.to_vec(),
        };
        self.bytes += id.len() + parent.len() + BYTES_PER_SPAN;
        if is_deleted {
            self.bytes += id.len() + BYTES_PER_SPAN;
            self.deleted.insert(id.to_vec());
        }
        if self.bytes > self.max_bytes {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            return Err(WorkError::LargeTrace {
                project: text(&self.project),
                trace: text(&self.trace),
                limit: self.max_bytes,
            });
        }
        self.spans.push((id.to_vec(), parent));
        Ok(())
    }

    /// Stores the item of each span of the trace, unless done already.
    pub(super) fn finish(
        &mut self,
        pointers: &mut BTreeMap<Vec<u8>, Pointers>,
        writer: &mut ExperimentWriter<'_>,
    ) -> Result<ExperimentCounts, WorkError> {
        let encoded = self.key();
        let Some(pointers) = pointers.remove(&encoded) else {
            return Ok(ExperimentCounts::default());
        };
        let mut counts = ExperimentCounts::default();
        for (span, root) in owners(&self.spans, &pointers) {
            let pointer = &pointers[root];
            if !pointer.is_left && !self.deleted.contains(span) {
                writer.put_span(&encoded, span, &pointer.item)?;
                counts.spans += 1;
            }
        }
        let left = pointers.values().filter(|pointer| pointer.is_left);
        counts.items_left_to_live_spans += left.count() as u64;
        if !pointers.is_empty() {
            writer.put_trace(&encoded)?;
            counts.traces += 1;
        }
        Ok(counts)
    }
}

/// The spans that items point at and all below them, each with the nearest span at or above it that
/// an item points at. `spans` are ids and parents.
fn owners<'a>(
    spans: &'a [(Vec<u8>, Vec<u8>)],
    pointers: &'a Pointers,
) -> Vec<(&'a [u8], &'a Vec<u8>)> {
    let mut children: HashMap<&[u8], Vec<&[u8]>> = HashMap::new();
    for (id, parent) in spans {
        children.entry(parent).or_default().push(id);
    }
    let mut owned = Vec::new();
    for root in pointers.keys() {
        let first = owned.len();
        owned.push((root.as_slice(), root));
        let mut next = first;
        while let Some(&(span, _)) = owned.get(next) {
            next += 1;
            // Each span has one parent, so it is reached once. A span with its own item starts a
            // new part, which also breaks cycles.
            let below = children.get(span).into_iter().flatten();
            let below = below.filter(|&&child| !pointers.contains_key(child));
            owned.extend(below.map(|&child| (child, root)));
        }
    }
    owned
}

#[cfg(test)]
mod tests {
    use super::super::pointers::Pointer;
    use super::*;
    use proptest::prelude::*;

    fn pointers(ids: &[u8]) -> Pointers {
        let pointer = |&id: &u8| {
            let item = Pointer {
                created_at: 0,
                id: vec![id],
                item: vec![id],
                is_left: false,
            };
            (vec![id], item)
        };
        ids.iter().map(pointer).collect()
    }

    proptest! {
        /// Parents may be missing or form cycles.
        #[test]
        fn a_span_belongs_to_the_nearest_item_above_it(
            parents in proptest::collection::vec(0_u8..14, 0..12),
            pointed in proptest::collection::btree_set(0_u8..14, 0..4),
        ) {
            let spans: Vec<_> = (0_u8..).zip(&parents).map(|(id, &p)| (vec![id], vec![p])).collect();
            let pointed: Vec<u8> = pointed.into_iter().collect();
            let pointers = pointers(&pointed);
            let found: BTreeMap<u8, u8> = owners(&spans, &pointers)
                .into_iter()
                .map(|(span, root)| (span[0], root[0]))
                .collect();
            let found_times = owners(&spans, &pointers).len();
            prop_assert_eq!(found_times, found.len());
            for id in 0..14_u8 {
                // Up to the root, but not around a cycle.
                let mut at = id;
                let mut expected = None;
                for _ in 0..20 {
                    if pointed.contains(&at) {
                        expected = Some(at);
                        break;
                    }
                    match parents.get(usize::from(at)) {
                        Some(&parent) => at = parent,
                        None => break,
                    }
                }
                prop_assert_eq!(found.get(&id).copied(), expected);
            }
        }
    }
}
