//! Tables that several servers share: checks that all addresses lead to the same tables, and waits until a
//! replica has the rows written through another.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;
use tokio::time::Instant;

use super::connection::Connection;
use super::error::RequestError;
use super::quoting;
use super::schema::TableInfo;

/// How long a replica may take to catch up.
const PATIENCE: Duration = Duration::from_secs(900);
/// Pause between two polls, if the user may not run SYSTEM SYNC REPLICA.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Identifies a server.
const SERVER: &str = "concat(toString(serverUUID()), ' ', hostName())";
/// Identifies a server without a UUID, such as the embedded one, by its disk.
const SERVER_AND_DISK: &str = "concat(toString(serverUUID()), ' ', hostName(), ' ', \
     ifNull((SELECT max(path) FROM system.disks), ''))";
/// ACCESS_DENIED
const ACCESS_DENIED: u32 = 497;

#[derive(Row, Deserialize)]
struct Identity {
    server: String,
    table: String,
}

#[derive(Row, Deserialize)]
struct Replica {
    is_readonly: u8,
    /// Entries of the shared log that this replica has not fetched yet.
    behind: u64,
    /// Parts that it does not have yet.
    parts: u64,
}

/// The UUID of tables in a database engine without UUIDs.
const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";

impl TableInfo {
    /// Whether it has a UUID, which only its replicas share.
    pub(crate) fn has_identity(&self) -> bool {
        self.uuid != NO_UUID
    }

    /// Whether its replicas replicate each other's rows.
    pub(crate) fn is_replicated(&self) -> bool {
        self.engine.starts_with("Replicated")
    }

    /// Whether several servers can have it: as replicas, or in shared storage.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_replicated() || self.engine.starts_with("Shared")
    }
}

/// Adds the table's name, which the server leaves out of errors about a replica.
fn said_of(name: &str, error: RequestError) -> RequestError {
    match error {
        RequestError::Exception { code, message } => RequestError::Exception {
            code,
            message: format!("{message} (the replica of {name})"),
        },
        error => error,
    }
}

impl Connection {
    /// Checks that all addresses lead to one server, or to replicas that share the table; the inner error is
    /// a sentence.
    ///
    /// # Errors
    /// [`RequestError`] if no server answers.
    pub(crate) async fn is_one_table(
        &self,
        table: &TableInfo,
    ) -> Result<Result<(), String>, RequestError> {
        let (mut servers, mut tables) = (BTreeSet::new(), BTreeSet::new());
        let query = |server: &str| {
            format!(
                "SELECT {server} AS server, toString(uuid) AS table FROM system.tables \
                 WHERE database = {} AND name = {}",
                quoting::string(&table.database),
                quoting::string(&table.name)
            )
        };
        let mut have_all_answered = true;
        for place in 0..self.places() {
            let server = self.only(place).without_retries();
            let identities = match server.rows::<Identity>(&query(SERVER_AND_DISK)).await {
                Err(error) if error.code() == Some(ACCESS_DENIED) => {
                    server.rows(&query(SERVER)).await
                }
                identities => identities,
            };
            let identities = match identities {
                // An unreachable server is skipped; it may or may not be one that has answered.
                Err(error) if error.is_of_server() => {
                    have_all_answered = false;
                    continue;
                }
                identities => identities?,
            };
            if identities.is_empty() {
                tables.insert(String::new());
            }
            for identity in identities {
                servers.insert(identity.server);
                tables.insert(identity.table);
            }
        }
        let is_one = have_all_answered && servers.len() == 1;
        self.is_one_server.store(is_one, Ordering::Relaxed);
        let name = table.qualified_name();
        Ok(match (tables.len(), servers.len()) {
            (2.., _) => Err(format!(
                "the addresses in CLICKHOUSE_URL lead to servers with different tables {name}: name \
                 replicas of one shard only"
            )),
            (_, 2..) if !table.is_shared() => Err(format!(
                "the addresses in CLICKHOUSE_URL lead to {} servers, and each has its own {name} (a {}): \
                 name only one of them",
                servers.len(),
                table.engine
            )),
            _ => Ok(()),
        })
    }

    /// Waits until this replica has the rows of a table that were written through the others. Returns at once
    /// if there is only one address, or if the table is not replicated.
    ///
    /// # Errors
    /// [`RequestError`] if the replica does not answer, does not catch up, or is read-only.
    pub(crate) async fn catch_up(&self, table: &TableInfo) -> Result<(), RequestError> {
        if self.places() == 1 || !table.is_replicated() {
            return Ok(());
        }
        let name = table.qualified_name();
        let wait = format!("SYSTEM SYNC REPLICA {name} LIGHTWEIGHT");
        match self.check_within(&wait, PATIENCE).await {
            // Servers before 23.6 do not know LIGHTWEIGHT (SYNTAX_ERROR); the user may lack the right.
            Err(error) if matches!(error.code(), Some(ACCESS_DENIED | 62 | 164)) => {}
            waited => return waited.map_err(|error| said_of(&name, error)),
        }
        let query = format!(
            "SELECT is_readonly, toUInt64(greatest(log_max_index + 1, log_pointer) - log_pointer) AS behind, \
             toUInt64(inserts_in_queue) AS parts FROM system.replicas WHERE database = {} AND table = {}",
            quoting::string(&table.database),
            quoting::string(&table.name)
        );
        let begun = Instant::now();
        loop {
            let replicas = match self.rows::<Replica>(&query).await {
                // Without access to system.replicas there is no way to know, so go on.
                Err(error) if error.code() == Some(ACCESS_DENIED) => return Ok(()),
                replicas => replicas?,
            };
            if replicas.iter().any(|replica| replica.is_readonly != 0) {
                return Err(RequestError::Exception {
                    code: 242,
                    message: format!("the replica of {name} is read-only"),
                });
            }
            if replicas.iter().all(|one| one.behind == 0 && one.parts == 0) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(RequestError::TimedOut {
                    doing: "catch up with the other replicas",
                    limit: PATIENCE,
                });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
