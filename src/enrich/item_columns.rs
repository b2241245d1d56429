//! Builds the experiment columns from dataset run items.

use serde_bytes::Bytes as Text;

use crate::mapping::Experiment;
use crate::native::{StringArrayWriter, put_string};
use crate::trace_store::ItemRecord;

/// The item of each row. Empty if no row has one.
pub(super) struct RowItems<'a, 'r> {
    pub(super) of_row: Vec<Option<u32>>,
    pub(super) items: &'a [ItemRecord<'r>],
}

impl<'a, 'r> RowItems<'a, 'r> {
    fn iter(&self) -> impl Iterator<Item = Option<&'a ItemRecord<'r>>> + use<'_, 'a, 'r> {
        let items = self.items;
        self.of_row
            .iter()
            .map(move |item| item.map(|number| &items[number as usize]))
    }

    /// Number of rows with an item.
    pub(super) fn count(&self) -> usize {
        self.of_row.iter().flatten().count()
    }

    /// Upper bound on the bytes all rows take from their items.
    pub(super) fn attribute_bytes(&self) -> usize {
        let of_item: Vec<usize> = self.items.iter().map(ItemRecord::attribute_bytes).collect();
        let numbers = self.of_row.iter().flatten();
        numbers.map(|&number| of_item[number as usize]).sum()
    }

    /// Appends one column's values to `out`.
    pub(super) fn put(&self, column: Experiment, out: &mut Vec<u8>) {
        match column {
            Experiment::Id => self.put_texts(out, |item| item.run_id),
            Experiment::Name => self.put_texts(out, |item| item.run_name),
            Experiment::Description => self.put_texts(out, |item| item.run_description),
            Experiment::DatasetId => self.put_texts(out, |item| item.dataset_id),
            Experiment::ItemId => self.put_texts(out, |item| item.item_id),
            Experiment::ItemExpectedOutput => self.put_texts(out, |item| item.expected_output),
            Experiment::ItemRootSpanId => self.put_texts(out, |item| item.root_span_id),
            Experiment::MetadataNames => {
                self.put_arrays(out, |item| item.run_metadata.iter().map(|pair| pair.0));
            }
            Experiment::MetadataValues => {
                self.put_arrays(out, |item| item.run_metadata.iter().map(|pair| pair.1));
            }
            Experiment::ItemMetadataNames => {
                self.put_arrays(out, |item| item.item_metadata.iter().map(|pair| pair.0));
            }
            Experiment::ItemMetadataValues => {
                self.put_arrays(out, |item| item.item_metadata.iter().map(|pair| pair.1));
            }
            Experiment::ItemVersion => self.put_versions(out),
        }
    }

    fn put_texts(&self, out: &mut Vec<u8>, text: impl Fn(&'a ItemRecord<'r>) -> &'r Text) {
        for item in self.iter() {
            put_string(out, item.map_or(&b""[..], |item| text(item)));
        }
    }

    fn put_arrays<I>(&self, out: &mut Vec<u8>, elements: impl Fn(&'a ItemRecord<'r>) -> I)
    where
        I: Iterator<Item = &'r Text>,
    {
        let mut column = StringArrayWriter::new(out, self.of_row.len());
        for item in self.iter() {
            for element in item.into_iter().flat_map(&elements) {
                column.push_element(element);
            }
            column.end_row();
        }
    }

    /// Writes all null flags, then all values.
    fn put_versions(&self, out: &mut Vec<u8>) {
        let versions = || {
            self.iter()
                .map(|item| item.and_then(|item| item.item_version))
        };
        out.extend(versions().map(|version| u8::from(version.is_none())));
        for version in versions() {
            out.extend_from_slice(&version.unwrap_or(0).to_le_bytes());
        }
    }
}
