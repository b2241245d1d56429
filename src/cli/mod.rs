//! The user's request: the command line, the environment and `.env`, validated and combined.

pub(crate) mod arguments;
mod dotenv;
mod environment;
pub(crate) mod options;
pub(crate) mod selection;
mod shell;
pub(crate) mod usage;
pub(crate) mod variables;

pub use environment::Environment;
pub(crate) use environment::setting_of_state_dir;
