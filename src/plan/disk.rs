//! Estimates the disk space that events take on the server.

use serde::Serialize;

use crate::clickhouse::{StoredBytes, TableSize};
use crate::memory::numbers::whole;

/// Smaller tables say little about larger ones: the fixed overhead of their files weighs too much.
const TELLING_ROWS: u64 = 10_000;
/// The view shortens input and output to this many characters.
const SHORTENED: u64 = 200;
/// Compressed share of those shortened texts: the view's table compresses them with LZ4, the others
/// with ZSTD (measured: 0.47 to 0.49).
const SHORTENED_COMPRESSED: f64 = 0.5;
/// Text index bytes per compressed byte of its column (measured: 0.1 for long texts to 0.9 for
/// short ones).
const TEXT_INDEX: f64 = 0.5;
/// Overhead of the other indexes, marks and event-only columns.
const OTHERS: f64 = 0.1;

/// Root spans to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct RootSpans {
    /// The month's traces, including unmerged versions.
    pub rows: u64,
    /// Number of segments.
    pub segments: u64,
    /// Size of the columns to read.
    pub bytes: StoredBytes,
}

/// Sizes of what events are made of.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sources {
    /// Observations, including versions: an upper bound on events.
    pub rows: u64,
    /// Observation columns to read.
    pub observations: StoredBytes,
    /// Input and output within `observations`.
    pub texts: StoredBytes,
    /// Metadata within `observations`.
    pub metadata: StoredBytes,
    /// Trace columns to read.
    pub traces: StoredBytes,
    /// Trace attributes that every observation gets, counted once per trace.
    pub attributes: StoredBytes,
    /// Traces, including versions.
    pub trace_rows: u64,
    /// The month's traces to read for root spans, if these are written.
    pub root_spans: Option<RootSpanSources>,
}

/// Sizes of what root spans are made of.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RootSpanSources {
    /// The month's traces, including versions.
    pub rows: u64,
    /// Columns to read.
    pub all: StoredBytes,
    /// Input and output within `all`.
    pub texts: StoredBytes,
    /// Metadata within `all`.
    pub metadata: StoredBytes,
}

impl Sources {
    /// The sources of all events, counting root spans as if made from observations.
    #[must_use]
    pub(super) fn with_root_spans(mut self) -> Self {
        if let Some(root_spans) = self.root_spans {
            self.rows += root_spans.rows;
            self.observations += root_spans.all;
            self.texts += root_spans.texts;
            self.metadata += root_spans.metadata;
        }
        self
    }
}

/// A table that receives events.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// `database.table`
    pub name: String,
    /// Its current size.
    pub size: TableSize,
    /// Columns with a text index.
    pub text_indexes: Vec<String>,
    /// Whether a view fills it and shortens long texts.
    pub is_fed: bool,
}

/// A table's estimated growth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Growth {
    /// `database.table`
    pub table: String,
    /// Growth in bytes on disk.
    pub bytes: u64,
    /// The basis of the estimate.
    pub estimated_from: String,
}

impl Table {
    /// Estimates the table's growth from writing `sources`.
    pub(super) fn growth(&self, sources: &Sources) -> Growth {
        let (bytes, estimated_from) = match self.size {
            TableSize {
                rows: TELLING_ROWS..,
                ..
            } => self.as_it_is(sources.rows),
            _ => self.as_its_sources(sources),
        };
        Growth {
            table: self.name.clone(),
            bytes: whole(bytes),
            estimated_from,
        }
    }

    /// As many bytes per row as existing rows take.
    fn as_it_is(&self, rows: u64) -> (f64, String) {
        let per_row = self.size.bytes_on_disk as f64 / self.size.rows as f64;
        let how = format!(
            "its {} existing rows, {per_row:.0} bytes each including indexes",
            indicatif::HumanCount(self.size.rows)
        );
        (per_row * rows as f64, how)
    }

    /// The current size of the source columns, plus indexes.
    fn as_its_sources(&self, sources: &Sources) -> (f64, String) {
        let texts = match self.is_fed {
            true => sources.shortened_texts(),
            false => sources.texts.compressed as f64,
        };
        let observations = sources
            .observations
            .compressed
            .saturating_sub(sources.texts.compressed);
        let data = observations as f64 + texts + sources.attributes_of_events();
        let indexed: f64 = self
            .text_indexes
            .iter()
            .map(|expression| match expression.contains("metadata") {
                true => sources.metadata.compressed as f64 + sources.attributes_of_events(),
                false => texts / 2.0,
            })
            .sum();
        let how = "the size of the source columns, plus typical indexes";
        let bytes = data * (1.0 + OTHERS) + indexed * TEXT_INDEX;
        (bytes, how.to_owned())
    }
}

impl Sources {
    /// Compressed bytes of trace attributes over all events.
    fn attributes_of_events(&self) -> f64 {
        match self.trace_rows {
            0 => 0.0,
            traces => self.attributes.compressed as f64 / traces as f64 * self.rows as f64,
        }
    }

    /// Compressed bytes of the shortened input and output.
    fn shortened_texts(&self) -> f64 {
        let kept = self.texts.uncompressed.min(2 * SHORTENED * self.rows);
        kept as f64 * SHORTENED_COMPRESSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(compressed: u64) -> StoredBytes {
        StoredBytes {
            compressed,
            uncompressed: 4 * compressed,
        }
    }

    /// A million observations of about 3,000 bytes.
    fn sources() -> Sources {
        Sources {
            root_spans: None,
            rows: 1_000_000,
            observations: bytes(850_000_000),
            texts: bytes(800_000_000),
            metadata: bytes(10_000_000),
            attributes: bytes(1_000_000),
            traces: bytes(3_000_000),
            trace_rows: 100_000,
        }
    }

    fn table(rows: u64, text_indexes: &[&str], is_fed: bool) -> Table {
        Table {
            name: "a.b".to_owned(),
            size: TableSize {
                rows,
                bytes_on_disk: 321 * rows,
            },
            text_indexes: text_indexes.iter().map(|&text| text.to_owned()).collect(),
            is_fed,
        }
    }

    #[test]
    fn a_table_with_rows_grows_as_it_has() {
        let growth = table(TELLING_ROWS, &[], false).growth(&sources());
        assert_eq!(growth.bytes, 321_000_000);
        assert!(growth.estimated_from.contains("10,000 existing rows"));
        let growth = table(TELLING_ROWS - 1, &[], false).growth(&sources());
        assert!(growth.estimated_from.contains("source"));
    }

    #[test]
    fn an_empty_table_takes_what_the_sources_take_and_its_indexes() {
        let plain = table(0, &[], false).growth(&sources()).bytes;
        assert!((850_000_000..1_000_000_000).contains(&plain), "{plain}");
        let indexed = table(0, &["lower(input)", "metadata_names"], false);
        assert!(indexed.growth(&sources()).bytes > plain);
        let fed = table(0, &[], true).growth(&sources()).bytes;
        assert!(fed < plain / 2 && fed > 200_000_000, "{fed}");
        assert_eq!(table(0, &[], true).growth(&Sources::default()).bytes, 0);
    }
}
