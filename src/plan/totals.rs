//! Totals over the plans of several months, and what applies to all of them.

use std::fmt;

use super::summary::Forecast;
use crate::memory::ByteSize;
use crate::progress::words::{count, in_about, write_lines};

/// Column width of the labels.
const WIDTH: usize = 27;

/// Sums over months.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    months: u64,
    observations: u64,
    traces: u64,
    write_bytes: u64,
    server_bytes: u64,
    /// Free space on the server's disks, if known.
    server_free: Option<u64>,
    /// The largest month's, since only one store exists at a time.
    store_bytes: u64,
    /// Most bytes more of a month, to resume it after a kill.
    resume_bytes: u64,
    /// `None` once any month's is unknown.
    seconds: Option<f64>,
    /// Remarks, each with the months it is about.
    notes: Vec<(String, Vec<String>)>,
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
        let store = &forecast.trace_store;
        self.store_bytes = self.store_bytes.max(store.needed_bytes);
        self.resume_bytes = self.resume_bytes.max(store.resume_bytes);
        for note in forecast.shared_notes() {
            let month = forecast.partition.clone();
            match self.notes.iter_mut().find(|known| known.0 == *note) {
                Some((_, months)) => months.push(month),
                None => self.notes.push((note.clone(), vec![month])),
            }
        }
    }

    /// Whether there is nothing to say.
    pub(crate) fn are_empty(&self) -> bool {
        self.months == 0
    }

    fn write_sums(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.server_free.map_or_else(String::new, |free| {
            let fits = match free < self.server_bytes {
                true => ", not enough",
                false => "",
            };
            format!("; {} free{fits}", ByteSize(free))
        });
        let time = self.seconds.map_or("unknown".to_owned(), in_about);
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
                    "Server disk",
                    format!("about {}{free}", ByteSize(self.server_bytes)),
                ),
                (
                    "Trace store disk",
                    format!(
                        "up to {}, about {} more to resume after a kill; one month at a time",
                        ByteSize(self.store_bytes),
                        ByteSize(self.resume_bytes)
                    ),
                ),
                ("Estimated time", time),
            ],
        )
    }

    fn write_notes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (note, months) in &self.notes {
            match months.len() as u64 == self.months {
                true => write!(f, "\nnote: {note}")?,
                false => write!(f, "\nnote on {}: {note}", months.join(", "))?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.months > 1 {
            writeln!(f)?;
            self.write_sums(f)?;
        }
        self.write_notes(f)
    }
}
