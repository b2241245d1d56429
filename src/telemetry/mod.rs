//! What a run tells whoever watches it: metrics in the format of OpenMetrics, over HTTP.

mod counters;
mod metrics;
mod server;

pub(crate) use self::counters::{Job, Telemetry};
pub(crate) use self::server::{Serving, serve};
