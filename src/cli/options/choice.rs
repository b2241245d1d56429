//! Switches that are on, off, or decided by the tables.

use serde::{Deserialize, Serialize};

use crate::cli::Environment;
use crate::error::Error;

/// A user's choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Choice {
    /// Explicitly on.
    On,
    /// Explicitly off.
    Off,
    /// Not given: the tables decide.
    #[default]
    Default,
}

impl Choice {
    /// Whether it is on, given the tables' `default`.
    pub fn or(self, default: bool) -> bool {
        match self {
            Choice::On => true,
            Choice::Off => false,
            Choice::Default => default,
        }
    }

    /// Combines a flag and its opposite with their variables `NAME` and `NO_NAME`. The command line
    /// wins; clap rejects both flags together.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) if both variables are true, or one is not a boolean.
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
                "{variable} and {opposite} are both true: unset one of them"
            ))),
            (true, false) => Ok(Choice::On),
            (false, true) => Ok(Choice::Off),
            // NAME=false means the same as NO_NAME=true.
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

/// The user's choices about what belongs to a complete month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Root spans.
    pub root_spans: Choice,
    /// Experiments.
    pub experiments: Choice,
}

/// The tables' defaults for [`Choice::Default`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Root spans.
    pub root_spans: bool,
    /// Experiments.
    pub experiments: bool,
}
