//! The same for commands that look at one partition at a time and change nothing.

use std::path::Path;

use serde_json::{Value, json};

use super::run::select;
use crate::cli::options::{Options, Request};
use crate::error::Error;
use crate::partition::Partition;
use crate::session::Session;
use crate::state::report;

/// How many errors are told.
const ERRORS_TOLD: usize = 5;

/// Does something for each partition that was asked for, newest first. What fails for one
/// ([`Error::Failed`]) does not keep the others from being looked at.
///
/// With several, the file of `--report` holds the reports of all that were looked at, as
/// `{"partitions": […]}`.
///
/// # Errors
/// [`Error::Failed`] where one has failed; any other error, after which none is looked at.
pub async fn each(
    request: Request,
    work: impl AsyncFn(Options) -> Result<(), Error>,
) -> Result<(), Error> {
    if let Some(partition) = request.selection.single() {
        return work(request.job(partition)).await;
    }
    let session = Session::begin(request.shared())?;
    let reports = Reports::begin(request.shared())?;
    let (_, selected) = select(&session, &request).await?;
    let mut errors = Vec::new();
    let mut stopped = Ok(());
    let mut looked_at = Vec::new();
    for &partition in &selected.partitions {
        let mut options = request.job(partition);
        options.report = reports.path(partition);
        session
            .display
            .note(format_args!("\npartition {partition}"));
        looked_at.push(partition);
        match work(options).await {
            Ok(()) => {}
            Err(Error::Failed(message)) => errors.push((partition, message)),
            Err(error) => {
                stopped = Err(error.in_partition(partition));
                break;
            }
        }
    }
    let written = reports.publish(&looked_at, &errors);
    stopped
        .and(told(&errors, selected.partitions.len()))
        .and(written)
}

/// The errors of some of so many partitions, as one.
fn told(errors: &[(Partition, String)], partitions: usize) -> Result<(), Error> {
    if errors.is_empty() {
        return Ok(());
    }
    let mut words: Vec<String> = errors
        .iter()
        .take(ERRORS_TOLD)
        .map(|(partition, message)| format!("partition {partition}: {message}"))
        .collect();
    if errors.len() > ERRORS_TOLD {
        words.push(format!("and {} more", errors.len() - ERRORS_TOLD));
    }
    Err(Error::Failed(format!(
        "{} of {partitions} partitions failed: {}",
        errors.len(),
        words.join("; ")
    )))
}

/// The reports of all partitions, gathered for one file.
struct Reports<'a> {
    wanted: Option<(&'a Path, tempfile::TempDir)>,
}

impl<'a> Reports<'a> {
    fn begin(options: &'a Options) -> Result<Self, Error> {
        let Some(path) = &options.report else {
            return Ok(Self { wanted: None });
        };
        report::require_writable(path)?;
        let directory = tempfile::tempdir()
            .map_err(|error| Error::failed("a temporary directory cannot be made", error))?;
        Ok(Self {
            wanted: Some((path, directory)),
        })
    }

    /// Where the report of a partition goes, until it is put together with the others.
    fn path(&self, partition: Partition) -> Option<std::path::PathBuf> {
        let (_, directory) = self.wanted.as_ref()?;
        Some(directory.path().join(format!("{partition}.json")))
    }

    /// Writes them all. Where there is none, there are partition and error.
    fn publish(
        &self,
        partitions: &[Partition],
        errors: &[(Partition, String)],
    ) -> Result<(), Error> {
        let Some((path, _)) = &self.wanted else {
            return Ok(());
        };
        let report = |&partition: &Partition| -> Value {
            let bytes = self.path(partition).and_then(|p| std::fs::read(p).ok());
            let report = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            report.unwrap_or_else(|| {
                let error = errors.iter().find(|(failed, _)| *failed == partition);
                let error = error.map(|(_, message)| message);
                json!({"partition": partition.to_string(), "error": error})
            })
        };
        let reports: Vec<Value> = partitions.iter().map(report).collect();
        report::publish(&json!({ "partitions": reports }), path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_errors_are_told_and_the_others_counted() {
        assert_eq!(told(&[], 3), Ok(()));
        let errors: Vec<(Partition, String)> = (1..=7)
            .map(|number| {
                let month = format!("20240{number}").parse().unwrap();
                (month, "it differs".to_owned())
            })
            .collect();
        let one = told(&errors[..1], 3).unwrap_err();
        assert_eq!(one.exit_code(), 1);
        assert_eq!(
            one.to_string(),
            "1 of 3 partitions failed: partition 202401: it differs"
        );
        let all = told(&errors, 9).unwrap_err().to_string();
        assert!(all.starts_with("7 of 9 partitions failed: partition 202401"));
        assert!(all.ends_with("partition 202405: it differs; and 2 more"));
    }
}
