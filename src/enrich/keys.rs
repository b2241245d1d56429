//! Maps rows to their traces.

use std::collections::HashMap;

use crate::memory::numbers::short;
use crate::partition::Day;
use crate::trace_store::key;

/// Trace keys of all blocks' rows, concatenated.
pub(super) struct Keys {
    pub(super) bytes: Vec<u8>,
    /// Each row's day, and where its key ends.
    pub(super) of_row: Vec<(Day, usize)>,
}

/// Which distinct trace each row belongs to.
pub(super) struct Slots {
    pub(super) of_row: Vec<u32>,
    pub(super) days: Vec<Day>,
    /// Whether each distinct trace has a non-empty id.
    pub(super) has_id: Vec<bool>,
}

impl Keys {
    /// The distinct traces, each with its first row's day.
    pub(super) fn distinct(&self) -> (Slots, Vec<(Day, &[u8])>) {
        let mut unique: Vec<(Day, &[u8])> = Vec::new();
        let mut has_id = Vec::new();
        let mut slot_of_key: HashMap<&[u8], u32> = HashMap::new();
        let mut of_row = Vec::with_capacity(self.of_row.len());
        let mut start = 0;
        for &(day, end) in &self.of_row {
            let key = &self.bytes[start..end];
            start = end;
            let slot = *slot_of_key.entry(key).or_insert_with(|| {
                unique.push((day, key));
                has_id.push(key::has_trace_id(key));
                short(unique.len() - 1)
            });
            of_row.push(slot);
        }
        let slots = Slots {
            of_row,
            days: self.of_row.iter().map(|&(day, _)| day).collect(),
            has_id,
        };
        (slots, unique)
    }
}
