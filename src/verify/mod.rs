//! Proof that source and target agree, made by the server and in bounded pieces.
//!
//! ```text
//!  pieces (project, day) ──▶ batches ──▶ sums of hashes on both sides
//!                                            │ where they differ
//!                                            ▼
//!                         slices (by span) ──▶ spans, both sides next to each other ──▶ examples
//! ```
//!
//! A row is two hashes: one over what the observation says, one over what its trace
//! has a part in. Over a batch, their sums do not depend on the order of the rows,
//! and two numbers per piece say whether anything is different. Only where they do
//! are rows themselves looked at.

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

/// Verifies one partition, and says what came of it, also where it ended early. Where it did not, that is
/// kept beside the state of the run.
///
/// # Errors
/// [`Error`] where nothing could be compared.
pub(crate) async fn run(
    session: &Session,
    options: Options,
) -> Result<(Report, Result<(), Error>), Error> {
    let retries = session.retries(&options);
    if !options.subject.observations {
        return Err(Error::configuration(
            "--only goes with a run and a plan: verify compares the events of observations too",
        ));
    }
    let mut options = Options {
        // A table that keeps what is written twice may be looked at.
        allow_duplicates: true,
        intent: Intent::Look,
        ..options
    };
    let inspected = session.inspect(&mut options, &retries).await?;
    // What is written while it looks may be wrong all the same.
    let began_at = milliseconds_since_1970();
    let (report, outcome) =
        examine(session, &options, &inspected, &retries, &mut OnlyCounted).await;
    let outcome = outcome.and_then(|()| report.verdict());
    if report.complete {
        let finding = Finding {
            compared_until: report.until_second.unwrap_or(began_at / 1_000),
            ..Finding::new("verify", began_at, &report, &outcome)
        };
        let identity = RunIdentity::new(&options, &inspected);
        if let Err(error) = finding.keep(&options, &identity, &session.display) {
            // It was said all the same.
            session.display.note(error);
        }
    }
    Ok((report, outcome))
}

/// Verifies one partition, and hands each row that is wrong to `findings`, as it is found. Prints
/// nothing but progress. The report says what was found, also where it ended early.
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
        // A row that was written through another replica is not missing.
        for table in [
            &inspected.observations,
            &inspected.traces,
            &inspected.target,
        ] {
            let caught_up = connection.with_retries(retries).catch_up(table).await;
            caught_up.map_err(|error| {
                Error::caused("waiting for what other replicas have written failed", error)
            })?;
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
