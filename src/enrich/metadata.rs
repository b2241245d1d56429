//! Merges the row's own metadata with its trace's.

use std::collections::HashSet;

use serde_bytes::Bytes as Text;

use super::json;
use super::row_traces::RowTraces;
use crate::mapping::{Mapping, TAGS_KEY};
use crate::native::{ArrayCursor, NativeError, StringArrayWriter, StringCursor, put_string};
use crate::trace_store::TraceRecord;

/// For each row: the observation's pairs (encoded in `names` and `values`), then the trace's pairs
/// with other keys, then the tags if they have no column.
pub(super) fn merge<'a>(
    mapping: &Mapping,
    names: &'a [u8],
    values: &'a [u8],
    rows: usize,
    traces: &RowTraces<'a, 'a>,
) -> Result<Vec<MergedRow<'a, 'a>>, NativeError> {
    let mut own = OwnMetadata::new(names, values, rows)?;
    let mut own_names: Vec<&[u8]> = Vec::new();
    let mut merged = Vec::with_capacity(rows);
    for trace in traces.iter() {
        let mut row = own.next_row(&mut own_names)?;
        if let Some(trace) = trace {
            if mapping.trace_metadata {
                row.from_trace = Kept::pairs_not_in(&trace.metadata, &own_names);
            }
            if mapping.tags_in_metadata {
                row.tags = tags_pair(trace, &row.from_trace, &own_names);
            }
        }
        merged.push(row);
    }
    Ok(merged)
}

/// The tags as a pair, unless their key is already taken.
fn tags_pair(trace: &TraceRecord<'_>, kept: &Kept<'_, '_>, own_names: &[&[u8]]) -> Option<Vec<u8>> {
    if trace.tags.is_empty() {
        return None;
    }
    let is_taken = own_names.contains(&TAGS_KEY.as_bytes())
        || kept.iter().any(|(name, _)| name == TAGS_KEY.as_bytes());
    (!is_taken).then(|| json::array(trace.tags.iter().map(|tag| tag.as_ref())))
}

type Pair<'r> = (&'r Text, &'r Text);

/// From this many keys on, a set beats pairwise comparison.
const MANY_NAMES: usize = 16;

/// The trace's pairs that a row takes.
pub(super) enum Kept<'a, 'r> {
    /// All pairs: the usual case.
    All(&'a [Pair<'r>]),
    /// Pairs whose key the observation lacks.
    Some(Vec<Pair<'r>>),
}

impl<'a, 'r> Kept<'a, 'r> {
    fn pairs_not_in(pairs: &'a [Pair<'r>], own_names: &[&[u8]]) -> Self {
        let set: Option<HashSet<&[u8]>> =
            (own_names.len() > MANY_NAMES).then(|| own_names.iter().copied().collect());
        let is_own = |(name, _): &Pair<'r>| match &set {
            Some(set) => set.contains(as_slice(name)),
            None => own_names.contains(&as_slice(name)),
        };
        if !pairs.iter().any(is_own) {
            return Kept::All(pairs);
        }
        Kept::Some(pairs.iter().filter(|pair| !is_own(pair)).copied().collect())
    }

    fn iter(&self) -> impl Iterator<Item = (&'r [u8], &'r [u8])> + use<'_, 'a, 'r> {
        let pairs = match self {
            Kept::All(pairs) => pairs,
            Kept::Some(pairs) => pairs.as_slice(),
        };
        pairs
            .iter()
            .map(|&(name, value)| (as_slice(name), as_slice(value)))
    }
}

fn as_slice(text: &Text) -> &[u8] {
    text
}

/// One event's metadata.
pub(super) struct MergedRow<'a, 'r> {
    own_count: usize,
    /// The observation's encoded keys and values.
    own_names: &'a [u8],
    own_values: &'a [u8],
    from_trace: Kept<'a, 'r>,
    tags: Option<Vec<u8>>,
}

/// A destination for a column's elements.
pub(super) trait Elements {
    fn encoded(&mut self, encoded: &[u8], count: usize);
    fn element(&mut self, value: &[u8]);
}

impl Elements for StringArrayWriter<'_> {
    fn encoded(&mut self, encoded: &[u8], count: usize) {
        self.push_encoded(encoded, count);
    }

    fn element(&mut self, value: &[u8]) {
        self.push_element(value);
    }
}

/// Appends elements without offsets.
pub(super) struct Appended<'a>(pub(super) &'a mut Vec<u8>);

impl Elements for Appended<'_> {
    fn encoded(&mut self, encoded: &[u8], _count: usize) {
        self.0.extend_from_slice(encoded);
    }

    fn element(&mut self, value: &[u8]) {
        put_string(self.0, value);
    }
}

impl MergedRow<'_, '_> {
    fn for_each_name(&self, out: &mut impl Elements) {
        out.encoded(self.own_names, self.own_count);
        self.from_trace
            .iter()
            .for_each(|(name, _)| out.element(name));
        if self.tags.is_some() {
            out.element(TAGS_KEY.as_bytes());
        }
    }

    pub(super) fn for_each_value(&self, out: &mut impl Elements) {
        out.encoded(self.own_values, self.own_count);
        self.from_trace
            .iter()
            .for_each(|(_, value)| out.element(value));
        if let Some(tags) = &self.tags {
            out.element(tags);
        }
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, NativeError> {
        let mut object = json::Object::default();
        let mut names = StringCursor::new(self.own_names);
        let mut values = StringCursor::new(self.own_values);
        for _ in 0..self.own_count {
            object.pair(names.next_value()?, values.next_value()?);
        }
        for (name, value) in self.from_trace.iter() {
            object.pair(name, value);
        }
        if let Some(tags) = &self.tags {
            object.pair(TAGS_KEY.as_bytes(), tags);
        }
        Ok(object.finish())
    }
}

pub(super) fn put_names(merged: &[MergedRow<'_, '_>], out: &mut Vec<u8>) {
    let mut column = StringArrayWriter::new(out, merged.len());
    for row in merged {
        row.for_each_name(&mut column);
        column.end_row();
    }
}

pub(super) fn put_values(merged: &[MergedRow<'_, '_>], out: &mut Vec<u8>) {
    let mut column = StringArrayWriter::new(out, merged.len());
    for row in merged {
        row.for_each_value(&mut column);
        column.end_row();
    }
}

/// Iterates over the observations' own metadata.
struct OwnMetadata<'a> {
    name_lengths: ArrayCursor<'a>,
    names: StringCursor<'a>,
    value_lengths: ArrayCursor<'a>,
    values: StringCursor<'a>,
}

impl<'a> OwnMetadata<'a> {
    fn new(names: &'a [u8], values: &'a [u8], rows: usize) -> Result<Self, NativeError> {
        let (name_lengths, names) = ArrayCursor::new(names, rows)?;
        let (value_lengths, values) = ArrayCursor::new(values, rows)?;
        Ok(Self {
            name_lengths,
            names: StringCursor::new(names),
            value_lengths,
            values: StringCursor::new(values),
        })
    }

    /// The next row. Its names are decoded into `decoded`.
    fn next_row(&mut self, decoded: &mut Vec<&'a [u8]>) -> Result<MergedRow<'a, 'a>, NativeError> {
        let count = self.name_lengths.next_length()?;
        if self.value_lengths.next_length()? != count {
            return Err(NativeError::corrupt(
                "a map has different numbers of keys and values",
            ));
        }
        decoded.clear();
        let mut names = self.names.clone();
        for _ in 0..count {
            decoded.push(names.next_value()?);
        }
        Ok(MergedRow {
            own_count: count,
            own_names: self.names.next_encoded(count)?,
            own_values: self.values.next_encoded(count)?,
            from_trace: Kept::All(&[]),
            tags: None,
        })
    }
}
