//! Locates traces outside their observations' day.
//!
//! A statement reads the traces of its days. Others are located beforehand and named in it: traces
//! with no version on these days, and traces on several days whose winning version is on another.

use serde_bytes::ByteBuf;

use super::rows::{Id, MovedTrace, VersionDay};
use super::scope::Scope;
use super::server::{QueryError, Server};
use super::statements::Statements;

/// Ids per statement: about two megabytes.
pub(super) const IDS_PER_STATEMENT: usize = 50_000;

/// Adds to a scope the traces its statements have to look for elsewhere. Returns false if they are
/// too many and the scope must be divided.
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
    // One more than allowed, to detect too many; all if the share cannot be divided.
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
        let what = "traces distant from their observations";
        let places = server.rows_of_share::<VersionDay>(what, &sql, scope.share);
        for place in places.await? {
            scope.moved.hashes.insert(place.hash);
            scope.moved.days.insert(place.day);
        }
    }
    Ok(true)
}
