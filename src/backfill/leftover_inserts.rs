//! Inserts that outlive their client. After a kill or a lost answer the server may still be
//! committing what it has received; before anybody looks at what is there, these must be gone.

use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;

use crate::clickhouse::{Connection, RequestError, sql};

/// How long the server may take to end an insert: it finishes the part that it is writing.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long to wait before looking again, where the user may not end queries.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Row, Deserialize)]
struct Count {
    count: u64,
}

/// Waits until no query is under way whose id begins with `prefix`, and ends those that are.
///
/// # Errors
/// [`RequestError`] where the server does not answer, or they do not end.
pub async fn end(connection: &Connection, prefix: &str) -> Result<(), RequestError> {
    let is_one = format!("startsWith(query_id, {})", sql::string(prefix));
    let started = tokio::time::Instant::now();
    loop {
        let query = format!("SELECT count() AS count FROM system.processes WHERE {is_one}");
        let under_way = connection.rows::<Count>(&query).await?;
        if under_way.iter().all(|row| row.count == 0) {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(RequestError::TimedOut {
                doing: "end an insert of this run",
                limit: PATIENCE,
            });
        }
        let kill = format!("KILL QUERY WHERE {is_one} SYNC");
        match connection.check_within(&kill, PATIENCE).await {
            Ok(()) => {}
            // ACCESS_DENIED, or a user who may only read: they end by themselves.
            Err(error) if matches!(error.code(), Some(497 | 164)) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
