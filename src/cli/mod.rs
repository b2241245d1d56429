//! What the user asks for: the words of the command line, the environment and `.env`, what they mean,
//! and which months they are about.

pub(crate) mod arguments;
mod dotenv;
mod environment;
pub(crate) mod options;
pub(crate) mod selection;
pub(crate) mod variables;

pub use environment::Environment;
