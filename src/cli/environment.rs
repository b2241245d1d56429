//! Settings from the environment and `.env`.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::dotenv;
use super::variables::VARIABLES;
use crate::error::Error;

/// Settings from the environment and `.env`. The environment wins.
#[derive(Default)]
pub struct Environment {
    variables: HashMap<String, String>,
}

impl Environment {
    /// Reads the process's environment and the file `.env` in the current directory, if there is one.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) if `.env` cannot be read or parsed, or a variable is
    /// not UTF-8.
    pub fn read() -> Result<Self, Error> {
        let mut variables = HashMap::new();
        let unreadable = |message| Error::configuration(message);
        match std::fs::read(".env") {
            Ok(content) => variables.extend(dotenv::settings(&content).map_err(unreadable)?),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(unreadable(format!("cannot read the file .env: {error}")));
            }
        }
        for name in VARIABLES {
            match std::env::var(name) {
                // An empty variable counts as unset.
                Ok(value) if value.trim().is_empty() => {}
                Ok(value) => {
                    variables.insert((*name).to_owned(), value);
                }
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => {
                    return Err(Error::configuration(format!(
                        "environment variable {name} is not valid UTF-8: set it again, or unset it"
                    )));
                }
            }
        }
        Ok(Self { variables })
    }

    /// An environment with only these variables.
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        let pairs = pairs
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            variables: pairs.collect(),
        }
    }

    /// The state directory: the flag, `STATE_DIR`, or `./state`.
    pub fn state_dir(&self, argument: Option<PathBuf>) -> PathBuf {
        argument
            .or_else(|| self.get("STATE_DIR").map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from("./state"))
    }

    /// The state directories: the flags, or [`state_dir`](Self::state_dir) without any.
    pub fn state_dirs(&self, arguments: Vec<PathBuf>) -> Vec<PathBuf> {
        match arguments.is_empty() {
            true => vec![self.state_dir(None)],
            false => arguments,
        }
    }

    /// A variable's exact value, spaces included.
    pub(super) fn get_untrimmed(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// A variable's trimmed value, unless it is empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, Error> {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("0" | "false" | "no" | "off" | "n" | "f") => Ok(false),
            Some("1" | "true" | "yes" | "on" | "y" | "t") => Ok(true),
            Some(other) => Err(Error::configuration(format!(
                "{name} is '{other}': set it to true or false"
            ))),
        }
    }
}
