//! Metrics of a run, served over HTTP in OpenMetrics format.

mod counters;
mod metrics;
mod server;

pub(crate) use self::counters::{Job, Telemetry};
pub(crate) use self::server::{Serving, serve};
