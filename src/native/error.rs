//! Why bytes are not a block.

use super::types::TypeError;

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

impl NativeError {
    /// Bytes that contradict the format, and how.
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        NativeError::Corrupt(what.into())
    }
}
