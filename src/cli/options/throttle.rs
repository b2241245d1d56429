//! Speed limits and load thresholds of a run.

use std::ops::RangeInclusive;

use super::settings::{Settings, whole};
use crate::cli::arguments::ThrottleArguments;
use crate::error::Error;
use crate::memory::ByteSize;
use crate::throttle::{LEAST_BYTES, LEAST_ROWS, SpeedWishes, Thresholds, ThrottleOptions, Window};

/// Allowed rows per second. With fewer, a segment's response is read so slowly that the server closes
/// the connection.
const ROWS_PER_SECOND: RangeInclusive<u64> = LEAST_ROWS..=1_000_000_000;
/// Allowed bytes per second, for the same reason.
const BYTES_PER_SECOND: RangeInclusive<ByteSize> = ByteSize(LEAST_BYTES)..=ByteSize(1 << 40);

impl Settings<'_> {
    /// Reads them from the command line and the environment.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) with the name of the invalid setting.
    pub(super) fn throttle(&self, arguments: ThrottleArguments) -> Result<ThrottleOptions, Error> {
        let is_off = arguments.no_throttle || self.environment.flag("NO_THROTTLE")?;
        let rows_per_second = self.limit(
            arguments.max_rows_per_second.clone(),
            "--max-rows-per-second",
            "MAX_ROWS_PER_SECOND",
            ROWS_PER_SECOND,
        )?;
        let bytes_per_second = self.bytes_per_second(arguments.max_bytes_per_second.clone())?;
        let window = self.window(arguments.window.clone())?;
        let thresholds = self.thresholds(arguments)?;
        Ok(ThrottleOptions {
            thresholds: (!is_off).then_some(thresholds),
            rows_per_second,
            bytes_per_second,
            window,
        })
    }

    fn window(&self, argument: Option<String>) -> Result<Option<Window>, Error> {
        let text = self.text(argument, "WINDOW");
        let window = text.map(|text| text.parse()).transpose();
        window.map_err(|error: String| Error::configuration(format!("--window: {error}")))
    }

    fn bytes_per_second(&self, argument: Option<String>) -> Result<Option<u64>, Error> {
        let (flag, variable) = ("--max-bytes-per-second", "MAX_BYTES_PER_SECOND");
        if argument.is_none() && self.environment.get(variable).is_none() {
            return Ok(None);
        }
        let size = self.size(argument, flag, variable, *BYTES_PER_SECOND.end())?;
        in_range(size, flag).map(Some)
    }

    fn thresholds(&self, arguments: ThrottleArguments) -> Result<Thresholds, Error> {
        let usual = Thresholds::default();
        let number = |argument, flag, variable, default: u64, range| {
            self.number(argument, flag, variable, default, range)
        };
        Ok(Thresholds {
            parts: self.limit(
                arguments.max_parts,
                "--max-parts",
                "MAX_PARTS",
                1..=1_000_000,
            )?,
            merges: self.limit(
                arguments.max_merges,
                "--max-merges",
                "MAX_MERGES",
                0..=10_000,
            )?,
            replica_delay: number(
                arguments.max_replica_delay,
                "--max-replica-delay",
                "MAX_REPLICA_DELAY",
                usual.replica_delay,
                1..=1_000_000,
            )?,
            replica_queue: number(
                arguments.max_replica_queue,
                "--max-replica-queue",
                "MAX_REPLICA_QUEUE",
                usual.replica_queue,
                0..=1_000_000,
            )?,
            server_memory: number(
                arguments.max_server_memory,
                "--max-server-memory",
                "MAX_SERVER_MEMORY",
                usual.server_memory,
                1..=100,
            )?,
            queries: self.limit(
                arguments.max_queries,
                "--max-queries",
                "MAX_QUERIES",
                0..=100_000,
            )?,
            slow_queries: number(
                arguments.max_slow_queries,
                "--max-slow-queries",
                "MAX_SLOW_QUERIES",
                usual.slow_queries,
                0..=100_000,
            )?,
            insert_slowdown: number(
                arguments.max_insert_slowdown,
                "--max-insert-slowdown",
                "MAX_INSERT_SLOWDOWN",
                usual.insert_slowdown,
                1..=1_000,
            )?,
        })
    }

    /// A number without a default.
    fn limit(
        &self,
        argument: Option<String>,
        flag: &str,
        variable: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, Error> {
        match argument.is_some() || self.environment.get(variable).is_some() {
            true => self.number(argument, flag, variable, 0, range).map(Some),
            false => Ok(None),
        }
    }
}

fn in_range(size: ByteSize, name: &str) -> Result<u64, Error> {
    let (least, most) = (BYTES_PER_SECOND.start(), BYTES_PER_SECOND.end());
    match BYTES_PER_SECOND.contains(&size) {
        true => Ok(size.0),
        false => Err(Error::configuration(format!(
            "{name} is {size}: use a size from {least} to {most}"
        ))),
    }
}

/// Parses the `NAME=VALUE` arguments of `events-backfill set`.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) with the invalid argument.
pub(crate) fn parse_wishes(changes: &[String]) -> Result<SpeedWishes, Error> {
    let mut wishes = SpeedWishes::default();
    for change in changes {
        let (name, value) = change.split_once('=').ok_or_else(|| {
            Error::configuration(format!(
                "'{change}' is not NAME=VALUE: write for example max-rows-per-second=20000"
            ))
        })?;
        match name {
            "concurrency" => wishes.concurrency = Some(whole(name, value, 1..=64)?),
            "max-rows-per-second" => {
                let rows = |value: &str| whole(name, value, ROWS_PER_SECOND);
                wishes.rows_per_second = Some(unless_off(value, rows)?);
            }
            "max-bytes-per-second" => {
                let bytes = |value: &str| {
                    let size = value.parse();
                    let size =
                        size.map_err(|error| Error::configuration(format!("{name}: {error}")))?;
                    in_range(size, name)
                };
                wishes.bytes_per_second = Some(unless_off(value, bytes)?);
            }
            _ => {
                return Err(Error::configuration(format!(
                    "'{name}' cannot be set: use concurrency, max-rows-per-second or \
                     max-bytes-per-second"
                )));
            }
        }
    }
    Ok(wishes)
}

fn unless_off(
    value: &str,
    limit: impl Fn(&str) -> Result<u64, Error>,
) -> Result<Option<u64>, Error> {
    match value {
        "off" => Ok(None),
        value => limit(value).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_set_is_a_list_of_names_and_values() {
        let parse = |changes: &[&str]| {
            let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
            parse_wishes(&changes)
        };
        let expected = SpeedWishes {
            concurrency: Some(1),
            rows_per_second: Some(Some(20_000)),
            bytes_per_second: Some(None),
        };
        let given = [
            "concurrency=1",
            "max-rows-per-second=20000",
            "max-bytes-per-second=off",
        ];
        assert_eq!(parse(&given), Ok(expected));
        for wrong in [
            "concurrency",
            "concurrency=0",
            "max-rows-per-second=7",
            "max-bytes-per-second=1KiB",
            "speed=high",
        ] {
            let error = parse(&[wrong]).unwrap_err();
            let name = wrong.split('=').next().unwrap();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
