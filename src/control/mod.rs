//! Controls an active run's speed through a socket in its state directory, which only its owner can
//! open.

mod client;
mod protocol;
mod server;
mod socket;

pub(crate) use self::client::{NoAnswer, ask};
pub(crate) use self::protocol::Command;
pub(crate) use self::server::{Listening, listen};
