//! The months that tests are about.

use std::sync::OnceLock;

use super::{Database, Server};

/// The month of the sample data, as the value of `--partition`.
pub const SAMPLE_PARTITION: &str = "202406";

/// The month of the sample data, as its first day.
pub const SAMPLE_MONTH: &str = "2024-06-01";

/// A new database of the shared server with the small month.
pub fn small_month(name_hint: &str) -> Database<'static> {
    let database = Server::shared().database(name_hint);
    database.load_small_month();
    database
}

/// The small month for all tests that leave the tables as they are.
pub fn untouched() -> &'static Database<'static> {
    static DATABASE: OnceLock<Database<'static>> = OnceLock::new();
    DATABASE.get_or_init(|| small_month("untouched"))
}
