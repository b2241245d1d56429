//! Checks that source and target agree, on the server and in bounded pieces.
//!
//! ```text
//!  pieces (project, day) ──▶ batches ──▶ sums of hashes on both sides
//!                                            │ where they differ
//!                                            ▼
//!                         slices (by span) ──▶ spans, both sides next to each other ──▶ examples
//! ```
//!
//! A row is two hashes: one over what the observation says, one over what its trace
//! has a part in. Their sums over a batch do not depend on row order, so two numbers
//! per piece show whether anything differs. Only then are individual rows read.

mod columns;
mod core_table;
mod event_rows;
mod events_core;
mod examples;
mod experiments;
mod findings;
mod missing;
mod narrow;
mod observation_columns;
mod origin;
mod pieces;
mod report;
mod rows;
mod scope;
mod server;
mod statements;
mod sums;
mod traces;
mod twice;
mod verification;
mod versions;

use std::time::Instant;

pub(crate) use self::findings::{Findings, FoundRow, Kind, OnlyCounted, Unlisted};
pub(crate) use self::report::Report;

use self::verification::Verification;
use crate::cli::options::{Intent, Options};
use crate::clickhouse::retry::Retries;
use crate::error::Error;
use crate::inspect::Inspected;
use crate::partition::milliseconds_since_1970;
use crate::session::Session;
use crate::state::checkpoint::RunIdentity;
use crate::state::finding::Finding;
use crate::state::resume;

/// Verifies one partition and reports the result, even if it stopped early. A complete result is
/// recorded with the run's state.
///
/// # Errors
/// [`Error`] if nothing could be compared.
pub(crate) async fn run(
    session: &Session,
    options: Options,
) -> Result<(Report, Result<(), Error>), Error> {
    let retries = session.retries(&options);
    if !options.subject.observations {
        return Err(Error::configuration(
            "--only applies to a run and to plan; verify always covers observations too",
        ));
    }
    let mut options = Options {
        // Checking a table that keeps duplicates is fine.
        allow_duplicates: true,
        intent: Intent::Look,
        ..options
    };
    let inspected = session.inspect(&mut options, &retries).await?;
    let identity = RunIdentity::new(&options, &inspected);
    let unfinished = resume::unfinished_run(&options, &identity);
    if let Some(unfinished) = &unfinished {
        session.display.note(format_args!(
            "{}: what it has not written yet counts as missing",
            unfinished.what
        ));
    }
    // Record the start: what is written from here on may still be wrong.
    let began_at = milliseconds_since_1970();
    let (mut report, outcome) =
        examine(session, &options, &inspected, &retries, &mut OnlyCounted).await;
    // A finished month is not run again: a repair writes what has been removed since.
    report.is_unfilled &= !resume::is_finished(&options);
    report.unfinished = unfinished.map(|unfinished| unfinished.remedy);
    let outcome = outcome.and_then(|()| report.verdict());
    if report.complete {
        let finding = Finding {
            compared_until: report.until_second.unwrap_or(began_at / 1_000),
            ..Finding::new("verify", began_at, &report, &outcome)
        };
        if let Err(error) = finding.keep(&options, &identity, &session.display) {
            // The result was shown already, so this is only a note.
            session.display.note(error);
        }
    }
    Ok((report, outcome))
}

/// Verifies one partition and passes each wrong row to `findings` as it is found. Prints only
/// progress. The report is valid even if it stopped early.
pub(crate) async fn examine(
    session: &Session,
    options: &Options,
    inspected: &Inspected,
    retries: &Retries,
    findings: &mut dyn Findings,
) -> (Report, Result<(), Error>) {
    let started = Instant::now();
    let display = session.display.clone();
    let connection = &session.connection;
    let mut verification =
        Verification::new(options, inspected, connection, retries, display, findings);
    let work = async {
        // Rows written through another replica must not count as missing.
        for table in [
            &inspected.observations,
            &inspected.traces,
            &inspected.target,
        ] {
            let caught_up = connection.with_retries(retries).catch_up(table).await;
            caught_up
                .map_err(|error| Error::caused("waiting for other replicas' rows failed", error))?;
        }
        verification.work(inspected).await
    };
    let outcome = session.unless_interrupted(work).await;
    let mut report = verification.report;
    report.retries = retries.repeated();
    report.seconds = started.elapsed().as_secs_f64();
    report.complete = outcome.is_ok();
    report.equal = report.complete && report.wrong() == 0;
    (report, outcome)
}
