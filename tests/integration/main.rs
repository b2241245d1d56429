//! The program as its users run it, against a real server.

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

mod access;
mod bad_input;
mod benchmark;
mod certificates;
mod clusters;
mod command_line;
mod control;
mod defaults;
mod documents;
mod elsewhere;
mod engine;
mod experiments;
mod files;
mod forecast;
mod history;
mod house;
mod metrics;
mod packaging;
mod page;
mod partitions;
mod planner;
mod profiles;
mod reference;
mod repair;
mod repair_damage;
mod replicas;
mod replicated;
mod root_spans;
mod secrets;
mod shards;
mod signals;
mod specification;
mod status;
mod throttle;
mod unattended;
mod untrusted_bytes;
mod verify;
