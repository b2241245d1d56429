//! How fast a run may go.

use std::ops::RangeInclusive;

use super::settings::Settings;
use crate::cli::arguments::ThrottleArguments;
use crate::error::Error;
use crate::memory::ByteSize;
use crate::throttle::{Thresholds, ThrottleOptions};

/// The least and the most rows in a second. With fewer, the answer with a segment's rows is read so
/// slowly that the server closes it.
const ROWS_PER_SECOND: RangeInclusive<u64> = 100..=1_000_000_000;
/// The same of bytes.
const BYTES_PER_SECOND: RangeInclusive<ByteSize> = ByteSize(256 << 10)..=ByteSize(1 << 40);

impl Settings<'_> {
    /// What the command line and the environment say of it.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind), with a sentence that names the setting.
    pub(super) fn throttle(&self, arguments: ThrottleArguments) -> Result<ThrottleOptions, Error> {
        let is_off = arguments.no_throttle || self.environment.flag("NO_THROTTLE")?;
        let rows_per_second = self.limit(
            arguments.max_rows_per_second.clone(),
            "--max-rows-per-second",
            "MAX_ROWS_PER_SECOND",
            ROWS_PER_SECOND,
        )?;
        let bytes_per_second = self.bytes_per_second(arguments.max_bytes_per_second.clone())?;
        let thresholds = self.thresholds(arguments)?;
        Ok(ThrottleOptions {
            thresholds: (!is_off).then_some(thresholds),
            rows_per_second,
            bytes_per_second,
        })
    }

    fn bytes_per_second(&self, argument: Option<String>) -> Result<Option<u64>, Error> {
        let (flag, variable) = ("--max-bytes-per-second", "MAX_BYTES_PER_SECOND");
        if argument.is_none() && self.environment.get(variable).is_none() {
            return Ok(None);
        }
        let size = self.size(argument, flag, variable, *BYTES_PER_SECOND.end())?;
        match BYTES_PER_SECOND.contains(&size) {
            true => Ok(Some(size.0)),
            false => Err(Error::configuration(format!(
                "{flag}: {size} is not from {} to {}",
                BYTES_PER_SECOND.start(),
                BYTES_PER_SECOND.end()
            ))),
        }
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

    /// A number that has no default.
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
