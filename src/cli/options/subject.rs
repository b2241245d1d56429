//! Defines which events are written, and with what data of their traces. A run, verify or repair
//! never mixes two such definitions.

use serde::{Deserialize, Serialize};

use super::choice::{Asked, Choice};
use super::settings::Settings;
use super::until;
use crate::cli::arguments::{Only, SubjectArguments};
use crate::error::Error;
use crate::mapping::{Source, Wanted};
use crate::progress::words::moment;

/// Which events are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Write an event for each observation.
    pub observations: bool,
    /// Write a root span for each trace. Until `Options::settle` has seen the tables: whether it was
    /// requested.
    pub root_spans: bool,
    /// Record the experiment of spans; set like `root_spans`.
    pub experiments: bool,
    /// The user's choices for these two.
    pub asked: Asked,
    /// Leave out the spans of dataset runs. Never set together with `experiments`.
    pub exclude_dataset_items: bool,
    /// Number of days before and after the month whose traces are loaded too.
    pub trace_margin_days: u16,
    /// Search other months for traces outside those days.
    pub remote_lookup: bool,
    /// Add the trace's metadata to the observation's.
    pub trace_metadata: bool,
    /// Rows that changed after this time are left to Langfuse if it writes to the target too, in
    /// microseconds since 1970. `None` means an hour before the run starts.
    pub until: Option<i64>,
}

impl Subject {
    /// The tables whose rows become events, in processing order.
    pub fn sources(&self) -> Vec<Source> {
        let wanted = [
            (Source::Observations, self.observations),
            (Source::Traces, self.root_spans),
        ];
        let wanted = wanted.into_iter().filter(|(_, is_wanted)| *is_wanted);
        wanted.map(|(source, _)| source).collect()
    }

    /// What the mapping takes from traces.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            trace_metadata: self.trace_metadata,
            experiments: self.experiments,
        }
    }

    /// Whether the items of dataset runs are needed.
    pub(crate) fn reads_dataset_items(&self) -> bool {
        self.experiments || self.exclude_dataset_items
    }

    /// Flags with their values as text, all of which must match for a run to be continued.
    pub(crate) fn facts(&self) -> [(&'static str, String); 7] {
        let what = match (self.observations, self.root_spans) {
            (true, false) => "observations",
            (true, true) => "observations and traces",
            (false, _) => "traces",
        };
        let until = self
            .until
            .map_or_else(|| "an hour before the run".to_owned(), moment);
        [
            (
                "what events are made of (--root-spans, --only)",
                what.to_owned(),
            ),
            (
                "--exclude-dataset-items",
                self.exclude_dataset_items.to_string(),
            ),
            ("--experiments", self.asked.experiments.to_string()),
            ("--until", until),
            ("--trace-margin-days", self.trace_margin_days.to_string()),
            ("--no-remote-lookup", (!self.remote_lookup).to_string()),
            ("--no-trace-metadata", (!self.trace_metadata).to_string()),
        ]
    }
}

impl Settings<'_> {
    /// Reads it from the command line and the environment.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) with the name of the invalid setting.
    pub(super) fn subject(&self, arguments: &SubjectArguments) -> Result<Subject, Error> {
        let environment = self.environment;
        let is_set = |flag: bool, variable| Ok::<bool, Error>(flag || environment.flag(variable)?);
        let asks_for_root_spans = arguments.root_spans || arguments.only == Some(Only::RootSpans);
        let root_spans = (asks_for_root_spans, arguments.no_root_spans);
        let experiments = (arguments.experiments, arguments.no_experiments);
        let mut asked = Asked {
            root_spans: Choice::of(root_spans, "ROOT_SPANS", environment)?,
            experiments: Choice::of(experiments, "EXPERIMENTS", environment)?,
        };
        let excludes_items = is_set(arguments.exclude_dataset_items, "EXCLUDE_DATASET_ITEMS")?;
        if excludes_items && asked.experiments == Choice::Default {
            // With experiments, exclusion has no effect.
            asked.experiments = Choice::Off;
        }
        Ok(Subject {
            observations: arguments.only != Some(Only::RootSpans),
            root_spans: asked.root_spans == Choice::On,
            experiments: asked.experiments == Choice::On,
            asked,
            // With experiments, these spans are written with their experiment.
            exclude_dataset_items: excludes_items && asked.experiments == Choice::Off,
            trace_margin_days: self.number(
                arguments.trace_margin_days.clone(),
                "--trace-margin-days",
                "TRACE_MARGIN_DAYS",
                1,
                0..=366,
            )?,
            remote_lookup: !is_set(arguments.no_remote_lookup, "NO_REMOTE_LOOKUP")?,
            trace_metadata: !is_set(arguments.no_trace_metadata, "NO_TRACE_METADATA")?,
            until: self
                .text(arguments.until.clone(), "UNTIL")
                .map(|text| until::parse(&text).map_err(Error::configuration))
                .transpose()?,
        })
    }
}
