//! What may die, break or be full: the program, the server, the connections between them, the disk.

// A test or a benchmark ends by a panic, and its numbers are small.
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::missing_docs_in_private_items,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

#[path = "../support/mod.rs"]
mod support;

mod disk_full;
mod engine;
mod faults;
mod live;
mod outages;
mod repair_faults;
mod replicas;
mod resume;
mod shards;
