//! Whether a run begins, goes on, or is over: what the state directory holds,
//! put together with `--resume`, `--resume-or-start` and `--restart`.

use std::path::Path;

use time::OffsetDateTime;
use time::macros::format_description;

use super::checkpoint::{Checkpoint, CheckpointError, RunIdentity};
use super::directory::PartitionDir;
use crate::cli::options::{Earlier, Options};
use crate::error::Error;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Start from nothing; whatever is there is to be removed.
    Fresh,
    /// Go on from here.
    Continue(Box<Checkpoint>),
    /// It is done, as this says; see [`over`].
    AlreadyFinished(Box<Checkpoint>),
}

/// Decides for the state in `directory`.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind), with what is there and what can be done.
pub(crate) fn decide(
    stored: Result<Option<Checkpoint>, CheckpointError>,
    identity: &RunIdentity,
    directory: &Path,
    options: &Options,
) -> Result<Decision, Error> {
    let directory = directory.display();
    if options.earlier == Earlier::Restart {
        return match &stored {
            Ok(Some(before))
                if before.identity.subject.experiments && !options.subject.experiments =>
            {
                Err(Error::configuration(format!(
                    "the run in {directory} was made with experiments, and one without would \
                     write over what it said of them: add --experiments, or remove {directory} \
                     first if that is what you want"
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
            Earlier::Resume => Err(Error::configuration(format!(
                "there is nothing to resume in {directory}: start without --resume"
            ))),
            _ => Ok(Decision::Fresh),
        };
    };
    if checkpoint.finished {
        return match checkpoint.identity.difference(identity) {
            None => Ok(Decision::AlreadyFinished(Box::new(checkpoint))),
            Some(difference) => Err(Error::configuration(format!(
                "the run in {directory} is finished, and was made for something else: \
                 {difference}; make it the same again, or do it again with --restart"
            ))),
        };
    }
    if !options.earlier.continues() {
        return Err(Error::configuration(format!(
            "{directory} holds an unfinished run, begun on {}, last saved on {}, with {}: add \
             --resume to continue it, or --restart to discard it and start over",
            moment(checkpoint.started_at),
            moment(checkpoint.saved_at),
            progress(&checkpoint)
        )));
    }
    match checkpoint.identity.difference(identity) {
        None => Ok(Decision::Continue(Box::new(checkpoint))),
        Some(difference) => Err(Error::configuration(format!(
            "the run in {directory} was made for something else: {difference}; make it the same \
             again to resume, or start over with --restart"
        ))),
    }
}

/// What a run that goes on says of experiments: see [`Options::experiments_so_far`]. One that cannot
/// be read is told of by [`decide`].
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

/// Refuses where a run of the month, or of a shard of it, in the same state directory is not finished: it
/// would write once more what somebody else writes meanwhile.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind), with what can be done.
pub(crate) fn require_finished(options: &Options) -> Result<(), Error> {
    for directory in PartitionDir::of_partition(&options.state_dir, options.partition) {
        if let Ok(Some(checkpoint)) = Checkpoint::read(&directory.checkpoint())
            && !checkpoint.finished
        {
            return Err(Error::configuration(format!(
                "the run in {} is not finished, with {}: finish it first, with --resume; it writes \
                 what is missing",
                directory.path.display(),
                progress(&checkpoint)
            )));
        }
    }
    Ok(())
}

/// Says that a run is over.
pub(crate) fn over(checkpoint: &Checkpoint, directory: &Path) -> String {
    format!(
        "this partition was finished on {} ({}); --restart does it again",
        moment(checkpoint.saved_at),
        directory.display()
    )
}

/// How far a run got, in words.
pub(crate) fn progress(checkpoint: &Checkpoint) -> String {
    match (&checkpoint.segments, checkpoint.superseded) {
        _ if checkpoint.awaits_experiments() => {
            "all traces loaded, and the spans of dataset runs being looked for".to_owned()
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
