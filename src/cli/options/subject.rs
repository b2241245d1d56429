//! What a run is about: which rows become events, and what of their traces these get. What is written
//! for one subject is not continued, compared or mended for another.

use serde::{Deserialize, Serialize};

use super::choice::{Asked, Choice};
use super::settings::Settings;
use super::until;
use crate::cli::arguments::{Only, SubjectArguments};
use crate::error::Error;
use crate::mapping::{Source, Wanted};

/// What a run is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Write an event for each observation.
    pub observations: bool,
    /// Write a root span for each trace. Until the tables are looked at, whether that was asked
    /// for: see `Options::settle`.
    pub root_spans: bool,
    /// Say to which experiment spans belong; likewise.
    pub experiments: bool,
    /// What the user says of these two.
    pub asked: Asked,
    /// Leave out the spans of dataset runs. Never together with `experiments`.
    pub exclude_dataset_items: bool,
    /// Days before and after the month whose traces are loaded too.
    pub trace_margin_days: u16,
    /// Ask ClickHouse for traces that are on none of these days.
    pub remote_lookup: bool,
    /// Add the traces' metadata.
    pub trace_metadata: bool,
    /// What changed after this moment is left to Langfuse, where it writes to the target too: in
    /// microseconds since 1970. An hour before the work begins, where nobody says another.
    pub until: Option<i64>,
}

impl Subject {
    /// The tables whose rows become events, in the order in which that is done.
    pub fn sources(&self) -> Vec<Source> {
        let wanted = [
            (Source::Observations, self.observations),
            (Source::Traces, self.root_spans),
        ];
        let wanted = wanted.into_iter().filter(|(_, is_wanted)| *is_wanted);
        wanted.map(|(source, _)| source).collect()
    }

    /// What a mapping is to have of traces.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            trace_metadata: self.trace_metadata,
            experiments: self.experiments,
        }
    }

    /// Whether the items of dataset runs play a part.
    pub(crate) fn reads_dataset_items(&self) -> bool {
        self.experiments || self.exclude_dataset_items
    }

    /// What must be the same for a run to be continued: flags, and what they say, in words.
    pub(crate) fn facts(&self) -> [(&'static str, String); 7] {
        let what = match (self.observations, self.root_spans) {
            (true, false) => "observations",
            (true, true) => "observations and traces",
            (false, _) => "traces",
        };
        let until = self.until.map_or_else(
            || "an hour before the run".to_owned(),
            |until| format!("{until} microseconds after 1970"),
        );
        [
            ("what becomes events", what.to_owned()),
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
    /// What the command line and the environment say of it.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind), with a sentence that names the setting.
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
            // With experiments it would have no effect.
            asked.experiments = Choice::Off;
        }
        Ok(Subject {
            observations: arguments.only != Some(Only::RootSpans),
            root_spans: asked.root_spans == Choice::On,
            experiments: asked.experiments == Choice::On,
            asked,
            // With experiments, these spans are written too, and only once.
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
