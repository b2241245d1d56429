//! What the plans of several months come to.

use std::fmt;

use super::summary::Forecast;
use crate::memory::ByteSize;
use crate::progress::words::{about, count, write_lines};

/// Characters before a value.
const WIDTH: usize = 27;

/// The sums over some months.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    months: u64,
    observations: u64,
    traces: u64,
    write_bytes: u64,
    server_bytes: u64,
    /// Free on the server's disks, where it is known.
    server_free: Option<u64>,
    /// Of the largest: one month's store is there at a time.
    store_bytes: u64,
    /// None once the time of one is not known.
    seconds: Option<f64>,
}

impl Totals {
    /// Adds a month.
    pub(crate) fn add(&mut self, forecast: &Forecast) {
        let seconds = match self.months {
            0 => Some(0.0),
            _ => self.seconds,
        };
        self.seconds = seconds
            .zip(forecast.time.total_seconds)
            .map(|(sum, seconds)| sum + seconds);
        self.months += 1;
        self.observations += forecast.observations.rows;
        self.traces += forecast.traces.rows;
        self.write_bytes += forecast.write_bytes;
        self.server_bytes += forecast.server_disk.needed_bytes;
        self.server_free = forecast.server_disk.free_bytes;
        self.store_bytes = self.store_bytes.max(forecast.trace_store.needed_bytes);
    }

    /// Whether they are more than one month's.
    pub(crate) fn are_of_several(&self) -> bool {
        self.months > 1
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.server_free.map_or_else(String::new, |free| {
            let fits = match free < self.server_bytes {
                true => ", which is not enough",
                false => "",
            };
            format!("; {} free{fits}", ByteSize(free))
        });
        let time = self.seconds.map_or_else(
            || "not known".to_owned(),
            |seconds| format!("about {}", about(seconds)),
        );
        write_lines(
            f,
            WIDTH,
            [
                ("All months", count(self.months)),
                ("Observations", format!("{} rows", count(self.observations))),
                ("Traces", format!("{} rows", count(self.traces))),
                (
                    "Events to write",
                    format!("about {} uncompressed", ByteSize(self.write_bytes)),
                ),
                (
                    "Disk on the server",
                    format!("about {}{free}", ByteSize(self.server_bytes)),
                ),
                (
                    "Disk for the trace store",
                    format!("up to {}, one month at a time", ByteSize(self.store_bytes)),
                ),
                ("Time (an estimate)", time),
            ],
        )
    }
}
