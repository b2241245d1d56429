//! The trace attributes of a block's rows.

use crate::native::{StringArrayWriter, put_string};
use crate::trace_store::TraceRecord;

/// The trace of each row.
pub(super) struct RowTraces<'a, 'r> {
    pub(super) of_row: Vec<u32>,
    pub(super) records: &'a [Option<TraceRecord<'r>>],
}

impl<'a, 'r> RowTraces<'a, 'r> {
    pub(super) fn iter(
        &self,
    ) -> impl Iterator<Item = Option<&'a TraceRecord<'r>>> + use<'_, 'a, 'r> {
        let records = self.records;
        self.of_row
            .iter()
            .map(move |&slot| records[slot as usize].as_ref())
    }

    /// Upper bound on the bytes all rows take from their traces.
    pub(super) fn attribute_bytes(&self) -> usize {
        let of_record: Vec<usize> = self
            .records
            .iter()
            .map(|record| record.as_ref().map_or(0, TraceRecord::attribute_bytes))
            .collect();
        let slots = self.of_row.iter();
        slots.map(|&slot| of_record[slot as usize]).sum()
    }

    /// Appends one of the traces' texts for each row.
    pub(super) fn put_text(&self, text: usize, out: &mut Vec<u8>) {
        for trace in self.iter() {
            put_string(out, trace.map_or(&b""[..], |trace| trace.texts[text]));
        }
    }

    pub(super) fn put_tags(&self, out: &mut Vec<u8>) {
        let mut column = StringArrayWriter::new(out, self.of_row.len());
        for trace in self.iter() {
            for tag in trace.iter().flat_map(|trace| &trace.tags) {
                column.push_element(tag);
            }
            column.end_row();
        }
    }
}
