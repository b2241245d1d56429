//! A database in a server.

use std::path::Path;

use super::server::text;
use super::{SAMPLE_MONTH, Server, repository_file};

/// A database of one test. Statements need not name it: it is the current one.
pub struct Database<'server> {
    pub server: &'server Server,
    pub name: String,
}

impl Database<'_> {
    /// Runs a statement, and gives back what ClickHouse answers: the result, or its exception.
    pub fn query(&self, sql: &str) -> Result<String, String> {
        self.query_bytes(sql).map(text)
    }

    /// Like [`Database::query`], for results that need not be UTF-8.
    pub fn query_bytes(&self, sql: &str) -> Result<Vec<u8>, String> {
        self.server
            .request(&[("database", &self.name)], sql.as_bytes())
    }

    /// Runs an INSERT statement that ends with its FORMAT, with the data in that format.
    pub fn insert_bytes(&self, sql: &str, data: &[u8]) -> Result<(), String> {
        let parameters = [("database", self.name.as_str()), ("query", sql)];
        self.server.request(&parameters, data).map(drop)
    }

    /// See [`Server::execute_file`].
    pub fn execute_file(&self, path: &Path, parameters: &[(&str, &str)]) {
        self.server.execute_file(path, &self.name, parameters);
    }

    /// Creates the tables of a current Langfuse.
    pub fn load_schema(&self) {
        self.execute_file(&repository_file("bench-data/schema.sql"), &[]);
    }

    /// Fills `traces`, `observations` and `dataset_run_items_rmt` for the month
    /// [`SAMPLE_PARTITION`], with about so many distinct observations.
    pub fn load_sample_month(&self, observations: u64) {
        self.load_month(SAMPLE_MONTH, observations);
    }

    /// Creates the tables of a current Langfuse and fills them with a few rows of the month
    /// [`SAMPLE_PARTITION`].
    pub fn load_small_month(&self) {
        self.load_schema();
        self.execute_file(&repository_file("tests/support/small-month.sql"), &[]);
    }

    /// Like [`Database::load_sample_month`], for the month that begins on the given day.
    pub fn load_month(&self, first_day: &str, observations: u64) {
        self.execute_file(
            &repository_file("bench-data/sample-month.sql"),
            &[
                ("month", first_day),
                ("observations", &observations.to_string()),
            ],
        );
    }
}
