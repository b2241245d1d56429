//! What joins observations with their traces.

use super::settings::Settings;
use super::subject::Subject;
use crate::error::Error;
use crate::memory::MOST_STATEMENT_ROWS;
use crate::throttle::ThrottleOptions;

/// What joins observations with their traces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Engine {
    /// This program, with a trace store on its disk.
    #[default]
    Embedded,
    /// The server itself, one segment per statement.
    ClickHouse,
}

impl Engine {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Engine::Embedded => "embedded",
            Engine::ClickHouse => "clickhouse",
        }
    }
}

impl Settings<'_> {
    /// Reads it from the command line or the environment.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) if there is no such engine, or if it cannot do what the
    /// other options ask for.
    pub(super) fn engine(
        &self,
        argument: Option<String>,
        subject: &Subject,
        throttle: &ThrottleOptions,
        segment_rows: Option<u64>,
    ) -> Result<Engine, Error> {
        let text = self.text(argument, "ENGINE");
        let engine = match text.as_deref() {
            None | Some("embedded") => return Ok(Engine::Embedded),
            Some("clickhouse") => Engine::ClickHouse,
            Some(other) => {
                return Err(Error::configuration(format!(
                    "--engine is '{other}': use embedded or clickhouse"
                )));
            }
        };
        if !subject.remote_lookup {
            return Err(Error::configuration(
                "--engine clickhouse cannot be combined with --no-remote-lookup: it looks for traces near \
                 their observations first, and for all others by id; remove one of the two",
            ));
        }
        if throttle.bytes_per_second.is_some() {
            return Err(Error::configuration(
                "--engine clickhouse cannot keep --max-bytes-per-second, since the bytes stay on the server: \
                 use --max-rows-per-second",
            ));
        }
        if let Some(rows) = segment_rows.filter(|&rows| rows > MOST_STATEMENT_ROWS) {
            return Err(Error::configuration(format!(
                "--segment-rows is {rows}: --engine clickhouse takes at most {MOST_STATEMENT_ROWS}, \
                 since each segment is one statement"
            )));
        }
        Ok(engine)
    }
}
