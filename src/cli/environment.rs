//! Settings from the environment and `.env`.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::dotenv;
use super::variables::VARIABLES;
use crate::error::Error;

/// The state directory that nobody has named.
const DEFAULT_STATE_DIR: &str = "./state";

/// Settings from the environment and `.env`. The environment wins.
#[derive(Default)]
pub struct Environment {
    variables: HashMap<String, String>,
    /// The current directory, if it has no file `.env`.
    without_file: Option<PathBuf>,
}

impl Environment {
    /// Reads the process's environment and the file `.env` in the current directory, if there is one.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) if `.env` cannot be read or parsed, or a variable is
    /// not UTF-8.
    pub fn read() -> Result<Self, Error> {
        let mut variables = HashMap::new();
        let mut without_file = None;
        let unreadable = |message| Error::configuration(message);
        match std::fs::read(".env") {
            Ok(content) => variables.extend(dotenv::settings(&content).map_err(unreadable)?),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                without_file = Some(std::env::current_dir().unwrap_or_else(|_| ".".into()));
            }
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
        Ok(Self {
            variables,
            without_file,
        })
    }

    /// An environment with only these variables.
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        let pairs = pairs
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            variables: pairs.collect(),
            without_file: None,
        }
    }

    /// A sentence about a missing `.env`, if an error comes from a setting that nobody has given: the
    /// operator is most likely in another directory than the file. `None` for those who use the environment
    /// alone.
    pub(crate) fn hint(&self, setting: &str) -> Option<String> {
        let directory = self.without_file.as_ref()?;
        let also = match setting {
            "CLICKHOUSE_PASSWORD" => "CLICKHOUSE_PASSWORD_FILE",
            // Often left out, or given as an option.
            "PARTITION" | "STATE_DIR" => "CLICKHOUSE_URL",
            _ => setting,
        };
        let is_given = [setting, also].iter().any(|name| self.get(name).is_some());
        (!is_given).then(|| {
            format!(
                "{setting} is not set, and there is no file .env in {}: if you have one, run this in its \
                 directory",
                directory.display()
            )
        })
    }

    /// The state directory: the flag, `STATE_DIR`, or `./state`.
    pub fn state_dir(&self, argument: Option<PathBuf>) -> PathBuf {
        argument
            .or_else(|| self.get("STATE_DIR").map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR))
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

/// The variable of the state directory, if `path` is the one that nobody has named.
pub(crate) fn setting_of_state_dir(path: &Path) -> Option<&'static str> {
    path.starts_with(DEFAULT_STATE_DIR).then_some("STATE_DIR")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_file(pairs: &[(&str, &str)]) -> Environment {
        Environment {
            without_file: Some("/somewhere".into()),
            ..Environment::of(pairs)
        }
    }

    #[test]
    fn a_missing_file_is_named_where_it_would_give_what_is_missing() {
        assert_eq!(
            without_file(&[]).hint("CLICKHOUSE_URL").unwrap(),
            "CLICKHOUSE_URL is not set, and there is no file .env in /somewhere: if you have one, run this \
             in its directory"
        );
        let url = [("CLICKHOUSE_URL", "http://host:8123")];
        assert!(without_file(&url).hint("CLICKHOUSE_DB").is_some());
        // Nothing for those who do without the file.
        for setting in ["CLICKHOUSE_URL", "STATE_DIR", "PARTITION"] {
            assert_eq!(without_file(&url).hint(setting), None, "{setting}");
        }
        let file = [("CLICKHOUSE_PASSWORD_FILE", "/secret")];
        assert_eq!(without_file(&file).hint("CLICKHOUSE_PASSWORD"), None);
        assert_eq!(Environment::of(&[]).hint("CLICKHOUSE_URL"), None);
    }

    #[test]
    fn only_a_state_directory_that_nobody_has_named_may_be_named_in_the_file() {
        assert_eq!(
            setting_of_state_dir(Path::new("./state")),
            Some("STATE_DIR")
        );
        assert_eq!(
            setting_of_state_dir(Path::new("./state/202406")),
            Some("STATE_DIR")
        );
        assert_eq!(setting_of_state_dir(Path::new("/data/state")), None);
    }
}
