//! Replicas without replication: servers whose tables have the same identities.

use super::Database;
use super::differential::{ask, execute};

/// Makes a database with tables that have the identities and the definitions of those of another server.
pub fn copy_tables(from: &Database, to: &Database, tables: &[String]) {
    to.server
        .query(&format!("CREATE DATABASE `{}`", to.name))
        .unwrap_or_else(|error| panic!("{error}"));
    for table in tables {
        copy_table(from, to, table);
    }
}

/// Makes a table, or a view, with the identity and the definition of that of another server.
pub fn copy_table(from: &Database, to: &Database, table: &str) {
    let definition = ask(
        from,
        &format!(
            "SHOW CREATE TABLE {table} FORMAT TSVRaw \
             SETTINGS show_table_uuid_in_table_create_query_if_not_nil = 1"
        ),
    );
    execute(to, &definition);
}

/// Copies the rows of tables.
pub fn copy_rows(from: &Database, to: &Database, tables: &[String]) {
    for table in tables {
        execute(
            to,
            &format!("INSERT INTO {table} SELECT * FROM {}", rows_of(from, table)),
        );
    }
}

/// A table of a server as another one reads it.
pub fn rows_of(database: &Database, table: &str) -> String {
    format!(
        "remote('127.0.0.1:{}', `{}`.{table}, 'default', '')",
        database.server.tcp_port(),
        database.name
    )
}

/// The tables that a run reads or writes, and `expected`, without the views that fill them.
pub fn tables(database: &Database) -> Vec<String> {
    let names = ask(
        database,
        "SELECT arrayStringConcat(groupArray(name), ' ') FROM system.tables \
         WHERE database = currentDatabase() AND engine IN ('ReplacingMergeTree', 'MergeTree')",
    );
    names.split(' ').map(str::to_owned).collect()
}
