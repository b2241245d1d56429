//! Decides from the state directory and `--resume`, `--resume-or-start` or `--restart` whether a run starts,
//! continues, or is already finished.

use std::path::Path;

use time::OffsetDateTime;
use time::macros::format_description;

use super::checkpoint::{Checkpoint, CheckpointError, RunIdentity};
use super::directory::PartitionDir;
use crate::cli::options::{Earlier, Options};
use crate::cli::setting_of_state_dir;
use crate::error::Error;
use crate::partition::ShareOfMonth;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Start from scratch and remove what is there.
    Fresh,
    /// Continue from this checkpoint.
    Continue(Box<Checkpoint>),
    /// Already finished, with this checkpoint; see [`over`].
    AlreadyFinished(Box<Checkpoint>),
}

/// Decides for the state in `directory`.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind), saying what is there and what to do.
pub(crate) fn decide(
    stored: Result<Option<Checkpoint>, CheckpointError>,
    identity: &RunIdentity,
    directory: &Path,
    options: &Options,
) -> Result<Decision, Error> {
    let path = directory;
    let directory = directory.display();
    if options.earlier == Earlier::Restart {
        return match &stored {
            Ok(Some(before))
                if before.identity.subject.experiments && !options.subject.experiments =>
            {
                Err(Error::configuration(format!(
                    "the run in {directory} wrote experiments, and one without would overwrite \
                     them: add --experiments, or remove {directory} first if you want that"
                )))
            }
            _ => Ok(Decision::Fresh),
        };
    }
    let stored = stored.map_err(|error| {
        Error::configuration(format!(
            "the checkpoint in {directory} cannot be used: {error}; --restart discards it and \
             starts over"
        ))
    })?;
    let Some(checkpoint) = stored else {
        return match options.earlier {
            Earlier::Resume => Err(nothing_to_resume(path)),
            _ => Ok(Decision::Fresh),
        };
    };
    if checkpoint.finished {
        return match checkpoint.identity.difference(identity) {
            None => Ok(Decision::AlreadyFinished(Box::new(checkpoint))),
            Some(difference) => Err(Error::configuration(format!(
                "the run in {directory} is finished, but with different settings: {difference}; \
                 undo the change, or write the month again with --restart"
            ))),
        };
    }
    if !options.earlier.continues() {
        return Err(Error::configuration(format!(
            "{directory} holds an unfinished run, started on {}, last saved on {}, with {}: add \
             --resume to continue it, or --restart to discard it and start over",
            moment(checkpoint.started_at),
            moment(checkpoint.saved_at),
            progress(&checkpoint)
        )));
    }
    match checkpoint.identity.difference(identity) {
        None => Ok(Decision::Continue(Box::new(checkpoint))),
        Some(difference) => Err(Error::configuration(format!(
            "the run in {directory} was started with different settings: {difference}; undo the \
             change to resume, or start over with --restart"
        ))),
    }
}

/// Whether a state directory has a run. One that cannot be read is reported by [`decide`].
pub(crate) fn is_begun(stored: &Result<Option<Checkpoint>, CheckpointError>) -> bool {
    !matches!(stored, Ok(None))
}

/// Fails if `--resume` is given and there is no run, before anything is created. `begun` says of each
/// directory whether it has one; `place` is where the operator looks for them.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind), saying what to do.
pub(crate) fn require_begun(
    mut begun: impl Iterator<Item = bool>,
    place: &Path,
    earlier: Earlier,
) -> Result<(), Error> {
    match earlier == Earlier::Resume && !begun.any(|is_begun| is_begun) {
        true => Err(nothing_to_resume(place)),
        false => Ok(()),
    }
}

fn nothing_to_resume(place: &Path) -> Error {
    Error::configuration(format!(
        "there is nothing to resume in {}: give the run's directory with --state-dir, or start \
         without --resume if there was none",
        place.display()
    ))
    .about(setting_of_state_dir(place))
}

/// Whether the run to continue writes experiments: see [`Options::experiments_so_far`]. [`decide`] reports
/// a checkpoint that cannot be read.
pub(crate) fn experiments_so_far(
    stored: &Result<Option<Checkpoint>, CheckpointError>,
    options: &Options,
) -> Option<bool> {
    match stored {
        Ok(Some(checkpoint)) if options.earlier != Earlier::Restart => {
            Some(checkpoint.identity.subject.experiments)
        }
        _ => None,
    }
}

/// A run that will still write rows.
#[derive(Debug)]
pub(crate) struct Unfinished {
    /// Where it is, and how far it got.
    pub what: String,
    /// How it comes to its end.
    pub remedy: String,
    identity: RunIdentity,
}

/// The runs of the month, or of its shards, that the state directory has and that are not finished.
fn unfinished(options: &Options) -> impl Iterator<Item = Unfinished> {
    let directories = PartitionDir::of_partition(&options.state_dir, options.partition);
    directories.into_iter().filter_map(|directory| {
        let checkpoint = Checkpoint::read(&directory.checkpoint()).ok().flatten()?;
        if checkpoint.finished {
            return None;
        }
        let progress = progress(&checkpoint);
        let PartitionDir { path, share, .. } = &directory;
        let (what, remedy) = match directory.holder() {
            Some(holder) => (
                format!("{holder} is still writing partition {share} ({progress})"),
                "wait for it to end".to_owned(),
            ),
            None => (
                format!(
                    "the run in {} is not finished ({progress})",
                    path.display()
                ),
                format!(
                    "finish it first, with the options it began with: `events-backfill --partition {}{} \
                     --resume`",
                    share.partition,
                    share
                        .shard
                        .map_or_else(String::new, |shard| format!(" --shard {shard}")),
                ),
            ),
        };
        Some(Unfinished {
            what,
            remedy,
            identity: checkpoint.identity,
        })
    })
}

/// Fails if the state directory has an unfinished run of the month, or of one of its shards: that run will
/// write the missing rows itself, and a repair would write them twice.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind), saying what to do.
pub(crate) fn require_finished(options: &Options) -> Result<(), Error> {
    match unfinished(options).next() {
        Some(Unfinished { what, remedy, .. }) => Err(Error::configuration(format!(
            "{what}, and it writes the missing events: {remedy}"
        ))),
        None => Ok(()),
    }
}

/// An unfinished run into the target of `identity`, with whatever options.
pub(crate) fn unfinished_run(options: &Options, identity: &RunIdentity) -> Option<Unfinished> {
    unfinished(options).find(|unfinished| unfinished.identity.has_target_of(identity))
}

/// Whether the state directory has a finished run of the month, or of one of its shards.
pub(crate) fn is_finished(options: &Options) -> bool {
    let directories = PartitionDir::of_partition(&options.state_dir, options.partition);
    let mut checkpoints = directories
        .iter()
        .map(|directory| Checkpoint::read(&directory.checkpoint()));
    checkpoints.any(|stored| matches!(stored, Ok(Some(checkpoint)) if checkpoint.finished))
}

/// The note that a run is already finished.
pub(crate) fn over(share: ShareOfMonth, checkpoint: &Checkpoint, directory: &Path) -> String {
    format!(
        "partition {share} was finished on {} ({}): nothing to do",
        moment(checkpoint.saved_at),
        directory.display()
    )
}

/// The progress of a run, in words.
pub(crate) fn progress(checkpoint: &Checkpoint) -> String {
    match (&checkpoint.segments, checkpoint.superseded) {
        _ if checkpoint.awaits_experiments() => {
            "all traces loaded; searching for the spans of dataset runs".to_owned()
        }
        (Some(segments), Some(_)) => format!(
            "{} of {} segments done",
            checkpoint.done.len(),
            segments.len()
        ),
        _ => format!("the traces of {} days loaded", checkpoint.days.len()),
    }
}

/// Seconds since 1970 as a date and time, UTC.
fn moment(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| {
            let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
            moment.format(format).ok()
        })
        .unwrap_or_else(|| format!("second {seconds}"))
}
