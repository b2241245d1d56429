//! What is asked for, and what is answered: a line of JSON each.

use serde::{Deserialize, Serialize};

use crate::throttle::{SpeedState, SpeedWishes};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// How fast it goes.
    State,
    /// To begin no new segment.
    Pause,
    /// To go on after that.
    Continue,
    /// To go faster or slower.
    Set(SpeedWishes),
}

/// What is answered: how fast it goes from now on, or a sentence that says why it is not done.
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
