//! Ends inserts that outlive their client. After a kill or a lost answer the server may still be
//! committing what it received; wait for that before reading the target.

use std::collections::BTreeSet;
use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;

use crate::clickhouse::{Connection, RequestError, TableInfo, quoting};
use crate::partition::ShareOfMonth;

/// Maximum time for the server to end an insert; it finishes the current part first.
const PATIENCE: Duration = Duration::from_secs(900);
/// Polling interval if the user may not kill queries.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Longest gap between two inserts of an active run: an insert without new rows is ended after ten
/// seconds.
const PAUSE: Duration = Duration::from_secs(15);

#[derive(Row, Deserialize)]
struct Count {
    count: u64,
}

#[derive(Row, Deserialize)]
struct QueryId {
    query_id: String,
}

/// Prefix of all our query ids.
const OURS: &str = "events-backfill-";

/// Query id prefix of all inserts to a share, from any run.
pub(crate) fn prefix_of(share: ShareOfMonth) -> String {
    format!("{OURS}{}-", share.name())
}

/// The share that a query id's insert writes to. The rest of the id is specific to its run.
fn share_of(query_id: &str) -> Option<ShareOfMonth> {
    let name = query_id.strip_prefix(OURS)?;
    let mut words = name.split('-');
    let (month, next) = (words.next()?, words.next());
    let of_shard = next.and_then(|next| ShareOfMonth::of_name(&format!("{month}-{next}")));
    of_shard.or_else(|| ShareOfMonth::of_name(month))
}

/// Waits until inserts into these days of the target, left by an earlier run or one with another
/// state directory, have ended. Returns whether new ones started meanwhile: then another run is
/// active. Inserts whose ids start with `own` belong to this run.
///
/// # Errors
/// [`RequestError`] if the server cannot be reached or the inserts do not end.
pub(crate) async fn others_are_at_work(
    connection: &Connection,
    target: &TableInfo,
    share: ShareOfMonth,
    own: Option<&str>,
) -> Result<bool, RequestError> {
    let query = format!(
        "SELECT query_id FROM system.processes WHERE query_kind = 'Insert' \
         AND startsWith(query_id, {}) AND position(query, {}) > 0",
        quoting::string(prefix_of(ShareOfMonth::whole(share.partition))),
        quoting::string(format!("{} ", target.qualified_name())),
    );
    // Other shards of the same run cover other days.
    let is_in_the_way = |id: &String| {
        let is_own = own.is_some_and(|own| id.starts_with(own));
        !is_own && share_of(id).is_some_and(|other| other.overlaps(share))
    };
    let started = tokio::time::Instant::now();
    let mut of_before: Option<BTreeSet<String>> = None;
    let mut ended = None;
    loop {
        let mut under_way: BTreeSet<String> = BTreeSet::new();
        for place in 0..connection.places() {
            match connection.at(place).rows::<QueryId>(&query).await {
                Ok(rows) => {
                    let ids = rows.into_iter().map(|row| row.query_id);
                    under_way.extend(ids.filter(is_in_the_way));
                }
                // ACCESS_DENIED: a user who may not see queries cannot check.
                Err(error) if error.code() == Some(497) => {}
                Err(error) => return Err(error),
            }
        }
        let of_before = of_before.get_or_insert_with(|| under_way.clone());
        if !under_way.is_subset(of_before) {
            return Ok(true);
        }
        if under_way.is_empty() {
            let ended = ended.get_or_insert_with(tokio::time::Instant::now);
            if of_before.is_empty() || ended.elapsed() > PAUSE {
                return Ok(false);
            }
        }
        if started.elapsed() > PATIENCE {
            return Err(RequestError::TimedOut {
                doing: "end another run's insert",
                limit: PATIENCE,
            });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// A server that may still be writing.
#[derive(Debug)]
pub(crate) struct Unsettled {
    /// Why that is unknown.
    pub error: RequestError,
    /// Its address, if there are several.
    pub address: Option<String>,
}

/// Kills all queries, on any server, whose id starts with `prefix`, and waits until they have
/// ended.
///
/// # Errors
/// [`Unsettled`] if a server cannot be reached or a query does not end: whatever it still writes
/// would be duplicated.
pub(crate) async fn end(connection: &Connection, prefix: &str) -> Result<(), Unsettled> {
    let servers = connection.to_each_server();
    for server in &servers {
        let ended = end_on_one(server, prefix).await;
        ended.map_err(|error| Unsettled {
            error,
            address: (servers.len() > 1).then(|| server.address_in_use()),
        })?;
    }
    Ok(())
}

async fn end_on_one(connection: &Connection, prefix: &str) -> Result<(), RequestError> {
    let is_one = format!("startsWith(query_id, {})", quoting::string(prefix));
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
            // ACCESS_DENIED or READONLY: the user may not kill them, so wait for them to end.
            Err(error) if matches!(error.code(), Some(497 | 164)) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str) -> Option<ShareOfMonth> {
        ShareOfMonth::of_name(name)
    }

    #[test]
    fn a_query_tells_which_days_it_writes() {
        for (name, run) in [
            ("202406", "6a1f-3of8"),
            ("202406-3of8", "6a1f-b2"),
            ("202406", "x"),
        ] {
            let id = format!("{}{run}-12-0", prefix_of(share(name).unwrap()));
            assert_eq!(share_of(&id), share(name), "{id}");
        }
        assert_eq!(share_of("events-backfill-202413-6a1f"), None);
        assert_eq!(share_of("somebody-else"), None);
    }
}
