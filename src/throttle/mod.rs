//! Going slower: where the server shows signs of stress, and where the operator has set a limit.
//!
//! A run has as many segments under way as [`Throttle::segments_at_once`] says, and before each block
//! that it sends it makes the pause that [`Throttle::pause_before`] asks for. What decides is a
//! [`Level`], which [`watch`] raises and lowers after what it reads of the server, and limits of rows
//! and bytes. gh-ost is the model: thresholds, and the reason where the operator sees it.

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
