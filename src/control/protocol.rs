//! Commands and answers, each a line of JSON.

use serde::{Deserialize, Serialize};

use crate::throttle::{SpeedState, SpeedWishes};

/// A command to a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Report the speed.
    State,
    /// Start no new segment.
    Pause,
    /// Resume after a pause.
    Continue,
    /// Change the speed.
    Set(SpeedWishes),
}

/// The new speed, or why the command was refused.
pub(super) type Answer = Result<SpeedState, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_answers_are_single_lines_of_json() {
        let wishes = SpeedWishes {
            concurrency: Some(1),
            rows_per_second: Some(Some(20_000)),
            bytes_per_second: Some(None),
        };
        let commands = [
            Command::State,
            Command::Pause,
            Command::Continue,
            Command::Set(wishes),
        ];
        for command in commands {
            let line = serde_json::to_string(&command).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Command>(&line).unwrap(), command);
        }
        let answer: Answer = Err("two\nlines".to_owned());
        let line = serde_json::to_string(&answer).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), answer);
    }
}
