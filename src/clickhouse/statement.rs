//! A statement that reads rows, with the settings that are its own. Those that its meaning depends on
//! go with every statement, whether it is one of these or not: see `settings.rs`.

use std::time::Duration;

use super::connection::{Connection, NativeStream, READ_TIMEOUT};
use super::error::RequestError;

/// How long the server may read the ids of a whole table, and sort or group them.
pub(crate) const TABLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Bytes beyond which the server is asked to do that on its disk.
pub(crate) const ON_DISK_FROM_BYTES: u64 = 128 * 1024 * 1024;

/// A SELECT whose answer is streamed in blocks.
#[derive(Debug, Clone)]
pub struct Statement {
    sql: String,
    settings: Vec<(&'static str, String)>,
    silence: Duration,
}

impl Statement {
    /// A SELECT that is answered in blocks of at most `block_rows` rows.
    pub fn new(sql: impl Into<String>, block_rows: usize) -> Self {
        let statement = Self {
            sql: sql.into(),
            settings: Vec::new(),
            silence: READ_TIMEOUT,
        };
        statement.with("max_block_size", block_rows)
    }

    /// The same in blocks of about so many bytes.
    #[must_use]
    pub fn in_bytes(self, block_bytes: usize) -> Self {
        self.with("preferred_block_size_bytes", block_bytes)
            // With it, blocks are whole granules whatever is asked for.
            .with("use_query_condition_cache", 0)
    }

    /// The same where the server has to read, sort or group much before it has the first row: it may
    /// be silent for long, and does it on its disk.
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

    /// The same with one more setting. Each is named in `settings.rs`, so that a profile that holds it
    /// is told before the work begins.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.settings.push((name, value.to_string()));
        self
    }
}

impl Connection {
    /// Sends a statement, whose answer is streamed in `Native` format.
    ///
    /// # Errors
    /// [`RequestError::Unexpected`] where the request cannot even be formed.
    pub fn send(&self, statement: &Statement) -> Result<NativeStream, RequestError> {
        let stream = self.stream(&statement.sql, &statement.settings)?;
        Ok(stream.with_silence(statement.silence))
    }
}
