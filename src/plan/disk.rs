//! How much of the server's disk the events will take.

use serde::Serialize;

use crate::clickhouse::{StoredBytes, TableSize};
use crate::memory::numbers::whole;

/// A table with fewer rows says little about the size of many: what its files
/// have besides rows counts too much.
const TELLING_ROWS: u64 = 10_000;
/// Most characters of input and of output in a table that is filled by Langfuse's
/// view.
const SHORTENED: u64 = 200;
/// What becomes of a byte of these, since that table compresses them with LZ4
/// where the others have ZSTD (measured: 0.47 to 0.49).
const SHORTENED_COMPRESSED: f64 = 0.5;
/// Bytes of a text index for each byte of the indexed column, compressed
/// (measured: 0.1 for long texts to 0.9 for short ones).
const TEXT_INDEX: f64 = 0.5;
/// What the other indexes, the marks and the columns that only events have add.
const OTHERS: f64 = 0.1;

/// The root spans that are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct RootSpans {
    /// Traces of the month, versions that are not merged yet included.
    pub rows: u64,
    /// Segments of the plan.
    pub segments: u64,
    /// Bytes of the columns that are read.
    pub bytes: StoredBytes,
}

/// What the events will be made of.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sources {
    /// Observations, versions included: an upper bound of the events.
    pub rows: u64,
    /// Of the observations, what is read.
    pub observations: StoredBytes,
    /// Of these, input and output.
    pub texts: StoredBytes,
    /// Of these, the metadata.
    pub metadata: StoredBytes,
    /// Of the traces, what is read.
    pub traces: StoredBytes,
    /// Of these, what each of their observations gets; once for each trace.
    pub attributes: StoredBytes,
    /// Traces, versions included.
    pub trace_rows: u64,
    /// What is read of the month's traces to make root spans of them, if that is wanted.
    pub root_spans: Option<RootSpanSources>,
}

/// What root spans will be made of.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RootSpanSources {
    /// Traces of the month, versions included.
    pub rows: u64,
    /// What is read.
    pub all: StoredBytes,
    /// Of it, input and output.
    pub texts: StoredBytes,
    /// Of it, the metadata.
    pub metadata: StoredBytes,
}

impl Sources {
    /// What all events will be made of, as if root spans were made of observations.
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

/// A table that events go into.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// `database.table`
    pub name: String,
    /// What is in it now.
    pub size: TableSize,
    /// What its text indexes are over.
    pub text_indexes: Vec<String>,
    /// Whether a view fills it, which shortens long texts.
    pub is_fed: bool,
}

/// How much a table will grow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Growth {
    /// `database.table`
    pub table: String,
    /// By so many bytes on disk.
    pub bytes: u64,
    /// How this was estimated.
    pub estimated_from: String,
}

impl Table {
    /// How much the table will grow by the events of `sources`.
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

    /// As many bytes for each row as the rows that are there take.
    fn as_it_is(&self, rows: u64) -> (f64, String) {
        let per_row = self.size.bytes_on_disk as f64 / self.size.rows as f64;
        let how = format!(
            "what the {} rows that it has take, {per_row:.0} bytes each with all indexes",
            indicatif::HumanCount(self.size.rows)
        );
        (per_row * rows as f64, how)
    }

    /// As many bytes as what they are made of takes now, and indexes.
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
        let how = "what the columns it is made of take in the source, and indexes of usual size";
        let bytes = data * (1.0 + OTHERS) + indexed * TEXT_INDEX;
        (bytes, how.to_owned())
    }
}

impl Sources {
    /// Compressed bytes of the traces' attributes in all events.
    fn attributes_of_events(&self) -> f64 {
        match self.trace_rows {
            0 => 0.0,
            traces => self.attributes.compressed as f64 / traces as f64 * self.rows as f64,
        }
    }

    /// Compressed bytes of input and output, of which only the beginning is kept.
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
        assert!(growth.estimated_from.contains("10,000 rows"));
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
