//! Names, help texts and values of all metrics.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::counters::{Telemetry, lock};
use crate::memory::resident_bytes;
use crate::throttle::Throttle;

/// Prefix of every metric name.
const PREFIX: &str = "events_backfill";

/// A registry that reads all metrics at scrape time.
pub(super) fn registry(telemetry: Telemetry, throttle: Throttle) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(All {
        telemetry,
        throttle,
    }));
    registry
}

#[derive(Debug)]
struct All {
    telemetry: Telemetry,
    throttle: Throttle,
}

/// A metric and its values.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    values: Vec<(Vec<(&'static str, String)>, f64)>,
}

impl Metric {
    fn counter(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            kind: MetricType::Counter,
            values: Vec::new(),
        }
    }

    fn gauge(name: &'static str, help: &'static str) -> Self {
        Self {
            kind: MetricType::Gauge,
            ..Self::counter(name, help)
        }
    }

    fn value(mut self, value: f64) -> Self {
        self.values.push((Vec::new(), value));
        self
    }

    fn by<K: ToString>(
        mut self,
        label: &'static str,
        values: impl IntoIterator<Item = (K, f64)>,
    ) -> Self {
        let values = values.into_iter();
        self.values
            .extend(values.map(|(name, value)| (vec![(label, name.to_string())], value)));
        self
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, self.kind)?;
        for (labels, value) in &self.values {
            let mut metric = metric.encode_family(labels)?;
            match self.kind {
                MetricType::Counter => {
                    metric.encode_counter::<NoLabelSet, f64, f64>(value, None)?;
                }
                _ => metric.encode_gauge(value)?,
            }
        }
        Ok(())
    }
}

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = [self.of_rows(), self.of_time(), self.of_this_process()];
        metrics
            .iter()
            .flatten()
            .try_for_each(|metric| metric.encode(&mut encoder))
    }
}

impl All {
    fn of_rows(&self) -> Vec<Metric> {
        let shared = &self.telemetry.0;
        let rows = lock(&shared.rows).clone();
        let by_source = |metric: Metric, value: fn(&super::counters::Rows) -> u64| {
            metric.by(
                "source",
                rows.iter().map(|(name, rows)| (*name, value(rows) as f64)),
            )
        };
        let look_ups = lock(&shared.now).look_ups();
        vec![
            by_source(
                Metric::counter("rows_processed", "Source rows processed."),
                |rows| rows.processed,
            ),
            by_source(
                Metric::counter("events_written", "Events acknowledged by the server."),
                |rows| rows.written,
            ),
            by_source(
                Metric::counter("rows_without_trace", "Rows whose trace was not found."),
                |rows| rows.without_trace,
            ),
            Metric::counter(
                "trace_rows_loaded",
                "Trace rows loaded, including rows loaded again after a retry.",
            )
            .value(self.telemetry.trace_rows_loaded() as f64),
            Metric::counter(
                "rows_enriched",
                "Rows turned into events, including rows enriched again after a retry.",
            )
            .value(self.telemetry.rows_enriched() as f64),
            Metric::counter("sent_bytes", "Uncompressed bytes of events sent.")
                .value(self.throttle.sent_bytes() as f64),
            Metric::counter("look_ups", "Trace look-ups in the local store.")
                .value(look_ups.made as f64),
            Metric::counter(
                "look_ups_missed",
                "Trace look-ups that found nothing in the local store.",
            )
            .value(look_ups.missed as f64),
        ]
    }

    fn of_time(&self) -> Vec<Metric> {
        let shared = &self.telemetry.0;
        let retries = lock(&shared.retries).clone();
        let state = self.throttle.state();
        vec![
            Metric::counter("phase_seconds", "Wall-clock seconds spent in each phase.")
                .by("phase", shared.phases.seconds()),
            Metric::counter(
                "throttled_seconds",
                "Wall-clock seconds throttled, by reason.",
            )
            .by("reason", self.throttle.seconds()),
            Metric::counter("retries", "Retries, by kind of error.").by(
                "kind",
                retries
                    .into_iter()
                    .map(|(kind, number)| (kind, number as f64)),
            ),
            Metric::gauge(
                "segments_at_once",
                "Maximum number of segments that may run now.",
            )
            .value(self.throttle.segments_at_once() as f64),
            Metric::gauge("paused", "1 while paused by the operator.")
                .value(f64::from(u8::from(state.is_paused))),
        ]
    }

    fn of_this_process(&self) -> Vec<Metric> {
        let shared = &self.telemetry.0;
        let mut metrics = vec![
            Metric::gauge(
                "segments_done",
                "Segments of the current month that are finished.",
            )
            .value(shared.segments_done.load(Ordering::Relaxed) as f64),
        ];
        if let Some(job) = &lock(&shared.now).job {
            let labels = vec![
                ("partition", job.partition.clone()),
                ("target", job.target.clone()),
            ];
            let mut month = Metric::gauge("month", "1 for the month in progress.");
            month.values.push((labels, 1.0));
            metrics.extend([
                month,
                Metric::gauge("segments", "Segments planned for the current month.")
                    .value(job.segments as f64),
                Metric::gauge(
                    "store_bytes",
                    "Size of the local trace store on disk, in bytes.",
                )
                .value(job.store.disk_bytes() as f64),
            ]);
        }
        metrics.extend(resident_bytes().map(|bytes| {
            Metric::gauge(
                "resident_bytes",
                "Resident memory of this process, in bytes.",
            )
            .value(bytes as f64)
        }));
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throttle::ThrottleOptions;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn what_is_counted_is_told_with_its_names_and_labels() {
        let telemetry = Telemetry::default();
        telemetry.done("observations", 12, 10, 3);
        telemetry.done("observations", 1, 1, 0);
        telemetry.retried("network");
        drop(telemetry.phase("load"));
        let options = ThrottleOptions {
            thresholds: None,
            rows_per_second: None,
            bytes_per_second: None,
            window: None,
        };
        let throttle = Throttle::new(&options, 2);
        throttle.pause();
        throttle.has_sent(4096);
        let mut text = String::new();
        encode(&mut text, &registry(telemetry, throttle)).unwrap();
        for line in [
            "events_backfill_rows_processed_total{source=\"observations\"} 13",
            "events_backfill_events_written_total{source=\"observations\"} 11",
            "events_backfill_sent_bytes_total 4096",
            "events_backfill_retries_total{kind=\"network\"} 1",
            "events_backfill_paused 1",
            "events_backfill_segments_at_once 0",
            "# EOF",
        ] {
            assert!(
                text.lines().any(|other| other.starts_with(line)),
                "{line}\n{text}"
            );
        }
        assert!(text.contains("events_backfill_phase_seconds_total{phase=\"load\"}"));
        assert!(text.contains("events_backfill_throttled_seconds_total{reason=\"paused\"}"));
    }
}
