//! Where the traces are that do not lie on the day of their observations.
//!
//! A statement reads the traces of its days. What lies elsewhere is found beforehand
//! and named to it: traces of which no version is on these days, and traces that
//! have versions on several days, of which the one that counts is on another.

use serde_bytes::ByteBuf;

use super::rows::{Id, MovedTrace, VersionDay};
use super::scope::Scope;
use super::server::{QueryError, Server};
use super::statements::Statements;

/// Ids in one statement: about two megabytes of them.
pub(super) const IDS_PER_STATEMENT: usize = 50_000;

/// Names to a scope the traces that its statements have to look for elsewhere, as
/// far as they are not too many: then it is to be divided, and the answer is false.
pub(super) async fn find_far_traces(
    server: &Server,
    statements: &Statements,
    moved_traces: &[MovedTrace],
    scope: &mut Scope,
) -> Result<bool, QueryError> {
    let moved = &mut scope.moved;
    for moved_trace in moved_traces {
        let may_be_needed = moved_trace.first <= *scope.trace_days.end()
            && moved_trace.last >= *scope.trace_days.start()
            && !scope.days.contains(&moved_trace.latest)
            && scope.share.contains(moved_trace.hash);
        if may_be_needed {
            moved.hashes.insert(moved_trace.hash);
            moved.days.insert(moved_trace.latest);
        }
    }
    // One more than is taken, unless it has to be all.
    let most = scope.share.is_divisible().then_some(IDS_PER_STATEMENT + 1);
    let sql = statements.unresolved_traces(scope, most);
    let unresolved = server.rows_of_share::<Id>("the traces of observations", &sql, scope.share);
    let unresolved: Vec<ByteBuf> = unresolved.await?.into_iter().map(|row| row.id).collect();
    let most = unresolved.len().max(scope.moved.hashes.len());
    if most > IDS_PER_STATEMENT && scope.share.is_divisible() {
        return Ok(false);
    }
    for ids in unresolved.chunks(IDS_PER_STATEMENT) {
        let sql = statements.places_of_traces(&scope.projects, ids);
        let what = "traces that lie far from their observations";
        let places = server.rows_of_share::<VersionDay>(what, &sql, scope.share);
        for place in places.await? {
            scope.moved.hashes.insert(place.hash);
            scope.moved.days.insert(place.day);
        }
    }
    Ok(true)
}
