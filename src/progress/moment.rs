//! Times in text and JSON.

use std::fmt;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::macros::format_description;

/// Seconds since 1970. Serialized as date and time in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(pub u64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
        let text = i64::try_from(self.0)
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .and_then(|moment| moment.format(format).ok());
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "second {}", self.0),
        }
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Moment {
    /// Date and time to the minute.
    pub(crate) fn to_minute(self) -> String {
        let text = self.to_string().replace('T', " ");
        text.chars().take(16).collect()
    }
}
