//! Throttling: slows a run when the server shows stress, or to limits set by the operator.
//!
//! A run starts up to [`Throttle::segments_at_once`] segments and pauses before each block as
//! [`Throttle::pause_before`] says. Both follow a `Level`, which [`watch`] raises and lowers by
//! what the server reports, and the operator's limits on rows and bytes. Modelled on gh-ost:
//! thresholds, with the reason always visible to the operator.

mod clock;
mod handle;
mod level;
mod options;
mod pace;
mod reason;
mod replicas;
mod signs;
mod state;
mod watch;
mod window;

pub(crate) use self::clock::KeepingWindow;
pub(crate) use self::handle::{LEAST_BYTES, LEAST_ROWS, Pause, Throttle, ThrottledSeconds, since};
pub(crate) use self::options::{Thresholds, ThrottleOptions};
pub(crate) use self::state::{SpeedState, SpeedWishes};
pub(crate) use self::watch::{Told, Watched};
pub(crate) use self::window::Window;
