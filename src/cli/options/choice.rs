//! What may be on, off, or left to what suits the tables.

use serde::{Deserialize, Serialize};

use crate::cli::Environment;
use crate::error::Error;

/// What the user says of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Choice {
    /// It is wanted.
    On,
    /// It is not wanted.
    Off,
    /// Nothing: the tables decide.
    #[default]
    Default,
}

impl Choice {
    /// Whether it is on, where the tables suggest `default`.
    pub fn or(self, default: bool) -> bool {
        match self {
            Choice::On => true,
            Choice::Off => false,
            Choice::Default => default,
        }
    }

    /// From a flag, its opposite and their variables `NAME` and `NO_NAME`. The command line counts
    /// before the environment; clap sees to it that it does not say both.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) where the environment says both.
    pub(super) fn of(
        flags: (bool, bool),
        variable: &str,
        environment: &Environment,
    ) -> Result<Self, Error> {
        match flags {
            (true, _) => return Ok(Choice::On),
            (_, true) => return Ok(Choice::Off),
            (false, false) => {}
        }
        let is_set = environment.get(variable).is_some();
        let is_on = environment.flag(variable)?;
        let opposite = format!("NO_{variable}");
        match (is_on, environment.flag(&opposite)?) {
            (true, true) => Err(Error::configuration(format!(
                "{variable} and {opposite} are both true: take one of them away"
            ))),
            (true, false) => Ok(Choice::On),
            (false, true) => Ok(Choice::Off),
            // NAME=false says it as plainly as NO_NAME=true.
            (false, false) if is_set => Ok(Choice::Off),
            (false, false) => Ok(Choice::Default),
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Choice::On => "true",
            Choice::Off => "false",
            Choice::Default => "left to the tables",
        })
    }
}

/// What the user says of that which makes a month complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Of root spans.
    pub root_spans: Choice,
    /// Of experiments.
    pub experiments: Choice,
}

/// What the tables suggest where the user says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defaults {
    /// For root spans.
    pub root_spans: bool,
    /// For experiments.
    pub experiments: bool,
}
