//! Executes plan, verify or repair for each partition.

use std::io::Write;

use serde::Serialize;

use super::run::select;
use crate::cli::options::{Options, Request};
use crate::error::{Error, Kind};
use crate::partition::Partition;
use crate::session::Session;
use crate::state::report;

/// Maximum errors quoted in the final message.
const ERRORS_TOLD: usize = 5;

/// The result for a partition.
#[derive(Debug)]
pub struct Looked<R> {
    /// The content for `--report`.
    pub report: R,
    /// The same as text.
    pub text: String,
    /// The error to exit with, if something is wrong.
    pub outcome: Result<(), Error>,
}

/// Executes `work` for each selected partition, newest first, and continues after [`Kind::Failed`].
///
/// `all_well` is said of several partitions if nothing is wrong with any.
///
/// With several partitions, `--report` gets all their reports, as `{"partitions": […]}`.
///
/// # Errors
/// [`Kind::Failed`] if a partition failed. Any other kind of error stops at its partition.
pub async fn each<R: Serialize>(
    request: Request,
    all_well: Option<&str>,
    work: impl AsyncFn(&Session, Options) -> Result<Looked<R>, Error>,
) -> Result<(), Error> {
    let shared = request.shared();
    let session = Session::begin(shared)?;
    if let Some(path) = &shared.report {
        report::require_writable(path, "--report")?;
    }
    if let Some(partition) = request.selection.single() {
        let looked = work(&session, request.job(partition)).await?;
        show(&looked.text, shared);
        // The first error is the one the operator must know.
        return looked.outcome.and(publish_to(shared, &looked.report));
    }
    let (_, selected) = select(&session, &request).await?;
    let mut reports = Vec::new();
    let mut errors = Vec::new();
    let mut stopped = Ok(());
    for &partition in &selected.partitions {
        session
            .display
            .note(format_args!("\npartition {partition}"));
        let outcome = match work(&session, request.job(partition)).await {
            Ok(looked) => {
                show(&looked.text, shared);
                reports.push(Entry::Report(looked.report));
                looked.outcome
            }
            Err(error) => {
                reports.push(Entry::without_report(partition, &error));
                Err(error)
            }
        };
        match outcome.map_err(|error| error.in_partition(partition)) {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::Failed => errors.push(error),
            Err(error) => {
                stopped = Err(error);
                break;
            }
        }
    }
    if let (Ok(()), [], Some(all_well)) = (&stopped, &errors[..], all_well) {
        let partitions = selected.partitions.len();
        session
            .display
            .note(format_args!("all {partitions} months {all_well}"));
    }
    let reports = Reports {
        partitions: reports,
    };
    let written = publish_to(shared, &reports);
    stopped
        .and(summed_up(errors, selected.partitions.len()))
        .and(written)
}

fn show(text: &str, shared: &Options) {
    if !shared.quiet {
        // With standard output closed there is still the exit code, and the file.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }
}

fn publish_to(shared: &Options, report: &impl Serialize) -> Result<(), Error> {
    let path = shared.report.as_ref();
    path.map_or(Ok(()), |path| report::publish(report, path))
}

/// Sums the errors of several partitions up in one.
fn summed_up(errors: Vec<Error>, partitions: usize) -> Result<(), Error> {
    if errors.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = errors
        .iter()
        .take(ERRORS_TOLD)
        .map(Error::to_string)
        .collect();
    let failed = format!("{} of {partitions} partitions failed", errors.len());
    let error = Error::caused(failed, told.join("; "));
    Err(match errors.len().checked_sub(ERRORS_TOLD) {
        None | Some(0) => error,
        Some(others) => error.and(format!("and {others} more")),
    })
}

/// The content of `--report` for several partitions.
#[derive(Serialize)]
struct Reports<R> {
    partitions: Vec<Entry<R>>,
}

/// One of them.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<R> {
    Report(R),
    WithoutReport { partition: String, error: String },
}

impl<R> Entry<R> {
    fn without_report(partition: Partition, error: &Error) -> Self {
        Entry::WithoutReport {
            partition: partition.to_string(),
            error: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_errors_are_told_and_the_others_counted() {
        assert_eq!(summed_up(Vec::new(), 3), Ok(()));
        let errors = |count: u8| {
            let errors = (1..=count).map(|number| {
                let month = format!("20240{number}").parse().unwrap();
                Error::failed("it differs").in_partition(month)
            });
            errors.collect::<Vec<_>>()
        };
        let one = summed_up(errors(1), 3).unwrap_err();
        assert_eq!(one.exit_code(), 1);
        assert_eq!(
            one.to_string(),
            "1 of 3 partitions failed: partition 202401: it differs"
        );
        let all = summed_up(errors(7), 9).unwrap_err().to_string();
        assert!(all.starts_with("7 of 9 partitions failed: partition 202401"));
        assert!(all.ends_with("partition 202405: it differs; and 2 more"));
    }
}
