//! The months that tests are about.

use std::sync::OnceLock;

use super::differential::{Specification, add_experiments, execute, keep_versions_apart};
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

/// A new database of the shared server with a month with every oddity, whose rows have versions on several
/// days, and the table `expected` for a run that writes all that there is.
pub fn moved_month(name_hint: &str, observations: u64) -> Database<'static> {
    let database = Server::shared().database(name_hint);
    database.load_schema();
    keep_versions_apart(&database, &["traces", "observations", "events_full"]);
    database.load_sample_month(observations);
    move_traces(&database);
    move_observations(&database);
    Specification::current().fill(&database, SAMPLE_PARTITION, "events_full", "expected");
    Specification::of_root_spans().add(&database, SAMPLE_PARTITION, "expected");
    add_experiments(&database, "expected");
    database
}

/// Gives a month traces that moved between days and between months.
pub fn move_traces(database: &Database) {
    for (condition, moved, version, is_deleted) in [
        // To the month before, and later.
        (
            "% 40 = 0",
            "subtractDays(timestamp, 40)",
            "+ INTERVAL 1 HOUR",
            "0",
        ),
        // From the month before: the version there is older.
        (
            "% 40 = 1",
            "subtractDays(timestamp, 40)",
            "- INTERVAL 1 YEAR",
            "0",
        ),
        // To the next day, where it is deleted.
        (
            "% 40 = 2",
            "addDays(timestamp, 1)",
            "+ INTERVAL 1 HOUR",
            "1",
        ),
        // To another time of the same day.
        (
            "% 40 = 3",
            "addSeconds(toStartOfDay(timestamp), 1)",
            "+ INTERVAL 1 HOUR",
            "0",
        ),
    ] {
        execute(
            database,
            &format!(
                "INSERT INTO traces SELECT * REPLACE (concat(t.id, ' moved') AS id) FROM traces AS t FINAL \
                 WHERE cityHash64(t.id) {condition} AND t.id NOT LIKE '% moved'"
            ),
        );
        execute(
            database,
            &format!(
                "INSERT INTO traces SELECT * REPLACE ({moved} AS timestamp, concat(name, ' moved') AS name, \
                     event_ts {version} AS event_ts, {is_deleted} AS is_deleted) \
                 FROM traces FINAL WHERE id LIKE '% moved' \
                     AND cityHash64(replaceOne(id, ' moved', '')) {condition}"
            ),
        );
    }
}

/// Gives a month observations that moved to the day after, or a fortnight back, and some that were
/// deleted there: whichever process has the older version must know of the later one.
pub fn move_observations(database: &Database) {
    for (condition, moved, is_deleted) in [
        ("% 40 = 0", "addDays(start_time, 1)", "0"),
        ("% 40 = 1", "subtractDays(start_time, 14)", "0"),
        ("% 40 = 2", "addDays(start_time, 1)", "1"),
    ] {
        execute(
            database,
            &format!(
                "INSERT INTO observations SELECT * REPLACE ({moved} AS start_time, \
                     event_ts + INTERVAL 1 HOUR AS event_ts, {is_deleted} AS is_deleted) \
                 FROM observations FINAL WHERE cityHash64(id) {condition}"
            ),
        );
    }
}
