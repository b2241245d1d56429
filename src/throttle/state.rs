//! A run's current speed, and changes to it by the operator.

use std::fmt;

use indicatif::HumanCount;
use serde::{Deserialize, Serialize};

use crate::memory::ByteSize;
use crate::progress::Display;

/// A requested change of speed. `None` leaves a limit as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpeedWishes {
    /// Segments at once.
    pub concurrency: Option<usize>,
    /// Rows of events per second. `Some(None)` removes the limit.
    #[serde(with = "wish")]
    pub rows_per_second: Option<Option<u64>>,
    /// Bytes of events per second. `Some(None)` removes the limit.
    #[serde(with = "wish")]
    pub bytes_per_second: Option<Option<u64>>,
}

/// A run's current speed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SpeedState {
    /// Maximum segments at once.
    pub concurrency: usize,
    /// Limit on rows of events per second.
    pub rows_per_second: Option<u64>,
    /// Limit on bytes of events per second.
    pub bytes_per_second: Option<u64>,
    /// Paused by the operator.
    pub is_paused: bool,
    /// Waiting for its window.
    pub is_outside_window: bool,
    /// Why it is slowed.
    pub slowed_by: Option<String>,
}

impl SpeedState {
    /// Updates the progress display.
    pub(crate) fn show(&self, display: &Display) {
        display.set_status(self.why_slow());
    }

    /// Why it is below full speed, for the status line.
    pub(crate) fn why_slow(&self) -> Option<String> {
        let paused = self
            .is_paused
            .then(|| "paused: resume with `events-backfill continue`".to_owned());
        let outside = self
            .is_outside_window
            .then(|| "waiting for its window".to_owned());
        let slower = self
            .slowed_by
            .as_ref()
            .map(|why| format!("going slower: {why}"));
        let reasons: Vec<String> = [paused, outside, slower].into_iter().flatten().collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

impl fmt::Display for SpeedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.is_paused {
            words.push("paused; running segments finish first".to_owned());
        }
        if self.is_outside_window {
            words.push("waiting for its window".to_owned());
        }
        words.extend(
            self.slowed_by
                .as_ref()
                .map(|why| format!("going slower: {why}")),
        );
        words.push(match self.concurrency {
            1 => "1 segment at once".to_owned(),
            segments => format!("{segments} segments at once"),
        });
        let rows = self
            .rows_per_second
            .map(|rows| format!("at most {} rows/s", HumanCount(rows)));
        let bytes = self
            .bytes_per_second
            .map(|bytes| format!("at most {}/s", ByteSize(bytes)));
        words.extend(rows);
        words.extend(bytes);
        f.write_str(&words.join(", "))
    }
}

/// A limit in JSON: a number, `"off"`, or absent.
mod wish {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Limit {
        Number(u64),
        Word(String),
    }

    pub(super) fn serialize<S: Serializer>(
        wish: &Option<Option<u64>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let limit = wish.map(|limit| match limit {
            Some(number) => Limit::Number(number),
            None => Limit::Word("off".to_owned()),
        });
        limit.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Option<u64>>, D::Error> {
        Ok(match Option::<Limit>::deserialize(deserializer)? {
            None => None,
            Some(Limit::Number(number)) => Some(Some(number)),
            Some(Limit::Word(word)) if word == "off" => Some(None),
            Some(Limit::Word(word)) => {
                return Err(serde::de::Error::custom(format!("'{word}' is not a limit")));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_in_one_line() {
        let state = SpeedState {
            concurrency: 1,
            rows_per_second: Some(20_000),
            bytes_per_second: Some(20 << 20),
            is_paused: true,
            is_outside_window: false,
            slowed_by: None,
        };
        assert_eq!(
            state.to_string(),
            "paused; running segments finish first, 1 segment at once, at most 20,000 rows/s, \
             at most 20.0 MiB/s"
        );
    }
}
