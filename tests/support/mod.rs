//! What the integration tests stand on: a real ClickHouse server, databases in it, and runs of the
//! real program.
//!
//! ```ignore
//! #[path = "../support/mod.rs"]
//! mod support;
//!
//! #[test]
//! fn backfills_a_month() {
//!     let database = support::Server::shared().database("month");
//!     database.load_schema();
//!     database.load_sample_month(20_000);
//!
//!     let tool = support::Tool::new(&database).args(["--partition", "202406"]);
//!     tool.run().assert_code(0);
//!
//!     assert_eq!(tool.report()["errors"], 0);
//!     assert_eq!(database.query("SELECT count() > 0 FROM events_full").unwrap(), "1\n");
//! }
//! ```
// Each test binary uses some of it.
#![allow(dead_code, unused_imports)]

pub mod browser;
pub mod differential;
pub mod live;
pub mod mutate;
pub mod proxy;
pub mod repair;
pub mod replicas;
pub mod samples;
pub mod well_formed;
pub mod zookeeper;

mod database;
mod months;
mod outcome;
mod program;
mod server;
mod users;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use database::Database;
pub use months::{
    SAMPLE_MONTH, SAMPLE_PARTITION, move_observations, move_traces, moved_month, small_month,
    untouched,
};
pub use outcome::Outcome;
pub use program::{Running, Tool};
pub use server::{Options, Server, free_address, free_ports};
pub use users::{BLIND_OPERATOR, LIMITED, OPERATOR, READER, TESTER};

/// How often something that takes time is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The path of a file in this repository.
pub fn repository_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
