//! ClickHouse's columnar `Native` format: walk a block, slice it, build columns.
//!
//! A block is: number of columns and of rows (LEB128), then for each column its
//! name, its type (both LEB128-prefixed) and its values, laid out as
//! [`types::Layout`] says. Over HTTP without `client_protocol_version` nothing
//! else is in it. This module knows types and nothing of events or ClickHouse
//! servers.

mod column;
mod reader;
mod rows;
pub mod types;
mod writer;

pub use column::{ArrayCursor, FixedCursor, NullableStringCursor, StringCursor};
pub use reader::{Block, BlockReader, Column};
pub use types::{DataType, Layout, TypeError};
pub use writer::{StringArrayWriter, put_block_header, put_column_header, put_string, put_varint};

/// Why bytes are not a sequence of `Native` blocks, or not one that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NativeError {
    /// The bytes contradict the format.
    #[error("the response is not a valid Native block: {0}")]
    Corrupt(String),
    /// The bytes end inside a block.
    #[error(
        "the response ends inside a block ({bytes} bytes of it arrived): the connection was cut"
    )]
    Truncated {
        /// Bytes of the unfinished block that arrived.
        bytes: usize,
    },
    /// One block takes more memory than it may.
    #[error("a block of {rows} rows is larger than the {limit} bytes it may take")]
    TooLarge {
        /// Rows the block announced.
        rows: usize,
        /// The bound, in bytes.
        limit: usize,
    },
    /// A column whose type cannot be walked.
    #[error("column {column}: {error}")]
    Type {
        /// Its name.
        column: String,
        /// What is wrong with its type.
        error: TypeError,
    },
}

/// Most characters of a name or type that a message shows: what is garbled may
/// be any part of the data, and as long.
const SHOWN: usize = 100;

/// The beginning of a text that may be garbled, for a message.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

impl NativeError {
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        NativeError::Corrupt(what.into())
    }
}
