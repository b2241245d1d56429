//! The users of every server.

/// A user of every [`Server`] who may do everything and has a password: name and password.
pub const TESTER: (&str, &str) = ("tester", "secret-password-42");

/// A user of every [`Server`] who may read everything and write nothing: name and password.
pub const READER: (&str, &str) = ("reader", "reader-password");
/// Name and password of a user who may only read databases whose names begin with `limited`, and,
/// where the server asks for rights on system tables, of these those that a run needs.
#[allow(dead_code)]
pub const LIMITED: (&str, &str) = ("limited", "limited-password");

/// Name and password of a user who has the rights that docs/operating.md asks for, on the first database of
/// a server, if it is called `granted`.
#[allow(dead_code)]
pub const OPERATOR: (&str, &str) = ("operator", "operator-password");
/// The same without the one to see which views there are.
#[allow(dead_code)]
pub const BLIND_OPERATOR: (&str, &str) = ("blind", "blind-password");

pub(super) const RIGHTS: &[&str] = &[
    "SHOW DATABASES ON granted.*",
    "SELECT ON granted.traces",
    "SELECT ON granted.observations",
    "SELECT ON granted.dataset_run_items_rmt",
    "SELECT, INSERT, OPTIMIZE ON granted.events_full",
    "SELECT, INSERT, OPTIMIZE ON granted.events_core",
    "SELECT ON system.parts",
    "SELECT ON system.parts_columns",
    "SELECT ON system.processes",
    "SELECT ON system.merges",
    "SELECT ON system.metrics",
    "SELECT ON system.replicas",
    "SELECT ON system.server_settings",
];

pub(super) fn grants(rights: &[&str]) -> String {
    let database = format!(" ON granted_{}_1.", std::process::id());
    let grants = rights.iter().map(|right| {
        let right = right.replace(" ON granted.", &database);
        format!("<query>GRANT {right}</query>")
    });
    format!("<grants>{}</grants>", grants.collect::<String>())
}
