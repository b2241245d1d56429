//! Errors of the `Native` format.

use super::types::TypeError;

/// Why bytes are not an acceptable sequence of `Native` blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NativeError {
    /// The bytes violate the format.
    #[error("the response is not a valid Native block: {0}")]
    Corrupt(String),
    /// The bytes end inside a block.
    #[error("the response ended after {bytes} bytes of a block: the connection was cut")]
    Truncated {
        /// Bytes received of the unfinished block.
        bytes: usize,
    },
    /// A block exceeds its memory limit.
    #[error("a block of {rows} rows exceeds its limit of {limit} bytes")]
    TooLarge {
        /// Rows announced by the block.
        rows: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A column of an unsupported type.
    #[error("column {column}: {error}")]
    Type {
        /// Its name.
        column: String,
        /// What is wrong with its type.
        error: TypeError,
    },
}

impl NativeError {
    /// A violation of the format.
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        NativeError::Corrupt(what.into())
    }
}
