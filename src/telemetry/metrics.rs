//! The metrics, by name.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::counters::{Telemetry, lock};
use crate::memory::resident_bytes;
use crate::throttle::Throttle;

/// What the names of all metrics begin with.
const PREFIX: &str = "events_backfill";

/// All metrics, read when they are asked for.
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

/// A metric with all its values.
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
                Metric::counter("rows_processed", "Rows of a source that are done."),
                |rows| rows.processed,
            ),
            by_source(
                Metric::counter("events_written", "Events that the server has acknowledged."),
                |rows| rows.written,
            ),
            by_source(
                Metric::counter("rows_without_trace", "Rows whose trace was not found."),
                |rows| rows.without_trace,
            ),
            Metric::counter(
                "trace_rows_loaded",
                "Rows of traces that were loaded, again where that was repeated.",
            )
            .value(self.telemetry.trace_rows_loaded() as f64),
            Metric::counter(
                "rows_enriched",
                "Rows that were made into events, again where that was repeated.",
            )
            .value(self.telemetry.rows_enriched() as f64),
            Metric::counter(
                "sent_bytes",
                "Bytes of events that were sent, uncompressed.",
            )
            .value(self.throttle.sent_bytes() as f64),
            Metric::counter("look_ups", "Traces that were looked up in the local store.")
                .value(look_ups.made as f64),
            Metric::counter("look_ups_missed", "Of these, those that it does not have.")
                .value(look_ups.missed as f64),
        ]
    }

    fn of_time(&self) -> Vec<Metric> {
        let shared = &self.telemetry.0;
        let retries = lock(&shared.retries).clone();
        let state = self.throttle.state();
        vec![
            Metric::counter("phase_seconds", "Seconds by the clock in each phase.")
                .by("phase", shared.phases.seconds()),
            Metric::counter(
                "throttled_seconds",
                "Seconds for which it went slower, by reason.",
            )
            .by("reason", self.throttle.seconds()),
            Metric::counter("retries", "What was tried again, by the kind of error.").by(
                "kind",
                retries
                    .into_iter()
                    .map(|(kind, number)| (kind, number as f64)),
            ),
            Metric::gauge("segments_at_once", "Segments that may be under way now.")
                .value(self.throttle.segments_at_once() as f64),
            Metric::gauge("paused", "1 while the operator has paused it.")
                .value(f64::from(u8::from(state.is_paused))),
        ]
    }

    fn of_this_process(&self) -> Vec<Metric> {
        let shared = &self.telemetry.0;
        let mut metrics = vec![
            Metric::gauge("segments_done", "Segments of the month that are done.")
                .value(shared.segments_done.load(Ordering::Relaxed) as f64),
        ];
        if let Some(job) = &lock(&shared.now).job {
            let labels = vec![
                ("partition", job.partition.clone()),
                ("target", job.target.clone()),
            ];
            let mut month = Metric::gauge("month", "1 for the month that is worked on.");
            month.values.push((labels, 1.0));
            metrics.extend([
                month,
                Metric::gauge("segments", "Segments of the month.").value(job.segments as f64),
                Metric::gauge("store_bytes", "The local trace store on disk.")
                    .value(job.store.disk_bytes() as f64),
            ]);
        }
        metrics.extend(resident_bytes().map(|bytes| {
            Metric::gauge("resident_bytes", "Memory of the process.").value(bytes as f64)
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
