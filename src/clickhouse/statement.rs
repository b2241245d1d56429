//! A statement that reads rows, with its own settings. The settings that fix the meaning of statements
//! are sent with every request anyway: see `settings.rs`.

use std::time::Duration;

use super::connection::{Connection, NativeStream, READ_TIMEOUT};
use super::error::RequestError;

/// How long the server may take to read, sort or group the ids of a whole table.
pub(crate) const TABLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Bytes from which the server sorts and groups on its disk.
pub(crate) const ON_DISK_FROM_BYTES: u64 = 128 * 1024 * 1024;

/// A SELECT whose result is streamed in blocks.
#[derive(Debug, Clone)]
pub struct Statement {
    sql: String,
    settings: Vec<(&'static str, String)>,
    silence: Duration,
}

impl Statement {
    /// A SELECT whose result comes in blocks of at most `block_rows` rows.
    pub fn new(sql: impl Into<String>, block_rows: usize) -> Self {
        let statement = Self {
            sql: sql.into(),
            settings: Vec::new(),
            silence: READ_TIMEOUT,
        };
        statement.with("max_block_size", block_rows)
    }

    /// Limits blocks to about `block_bytes`.
    #[must_use]
    pub fn in_bytes(self, block_bytes: usize) -> Self {
        self.with("preferred_block_size_bytes", block_bytes)
            // The query condition cache would make blocks whole granules, whatever their bytes.
            .with("use_query_condition_cache", 0)
    }

    /// For a statement that reads, sorts or groups much before its first row: allows a long silence and
    /// sorts and groups on the server's disk.
    #[must_use]
    pub(crate) fn of_a_table(self) -> Self {
        let on_disk = self
            .with("max_bytes_before_external_group_by", ON_DISK_FROM_BYTES)
            .with("max_bytes_before_external_sort", ON_DISK_FROM_BYTES);
        Self {
            silence: TABLE_TIMEOUT,
            ..on_disk
        }
    }

    /// Adds a setting. Name it in `settings.rs` too, so that a profile that pins it is reported before the
    /// work begins.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.settings.push((name, value.to_string()));
        self
    }
}

impl Connection {
    /// Sends a statement and streams its result in `Native` format.
    ///
    /// # Errors
    /// [`RequestError::Unexpected`] if the request cannot be built.
    pub fn send(&self, statement: &Statement) -> Result<NativeStream, RequestError> {
        let stream = self.stream(&statement.sql, &statement.settings)?;
        Ok(stream.with_silence(statement.silence))
    }
}
