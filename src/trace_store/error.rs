//! Errors of the trace store.

use std::path::PathBuf;

/// Why the trace store cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// RocksDB failed.
    #[error("the trace store in {path} failed: {message}")]
    Database {
        /// Directory of the store.
        path: PathBuf,
        /// RocksDB's message.
        message: String,
    },
    /// The store does not match the checkpoint.
    #[error("the trace store in {path} does not belong to this run: {message}")]
    Mismatch {
        /// Directory of the store.
        path: PathBuf,
        /// What does not match.
        message: String,
    },
    /// A stored record cannot be decoded.
    #[error("a record in the trace store is damaged: {0}")]
    Record(String),
}
