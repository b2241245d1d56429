//! What goes wrong with the store.

use std::path::PathBuf;

/// A trace store that does not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// RocksDB's own words.
    #[error("the trace store in {path} failed: {message}")]
    Database {
        /// Directory of the store.
        path: PathBuf,
        /// RocksDB's message.
        message: String,
    },
    /// The store is not the one that the checkpoint speaks of.
    #[error("the trace store in {path} is not the one of this run: {message}")]
    Mismatch {
        /// Directory of the store.
        path: PathBuf,
        /// What does not fit.
        message: String,
    },
    /// A stored record cannot be read.
    #[error("a record in the trace store is damaged: {0}")]
    Record(String),
}
