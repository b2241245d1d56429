//! Finds traces outside their row's day and the days beside it: on other loaded days, or in other
//! months. They are looked up thousands at a time.

pub(crate) mod deferred_rows;
pub(crate) mod query;

use tokio::task::block_in_place;

use self::query::{Answer, MOVED_AT_ONCE, Question};
use super::context::Context;
use super::error::WorkError;
use super::journal::Journal;
use super::load::versions;
use super::pipeline::Pipeline;
use crate::backfill::work_attempts::WorkAttempts;
use crate::error::Error;
use crate::mapping::Source;
use crate::native::BlockReader;
use crate::trace_store::{About, TraceStore};

/// Maximum number of missing traces listed in the report.
const NOT_FOUND_LISTED: usize = 100;

/// Looks up the traces of all deferred rows: on the loaded days, then in ClickHouse.
///
/// # Errors
/// [`Error`] if the server, the store or a file fails, or on a signal.
pub(super) async fn look_up_deferred(
    context: &Context,
    journal: &mut Journal,
    pipeline: &Pipeline,
    source: Source,
    store: &TraceStore,
) -> Result<(), Error> {
    let key_columns = context.inspected.mapping_of(source).key_columns;
    // A deferred trace's older version may be stored already, and must not win.
    let about = match source {
        Source::Observations => About::Missing,
        Source::Traces => About::Moved,
    };
    let deferred: Vec<_> = journal.checkpoint().deferred_of(source).collect();
    let mut question = Question::default();
    for (segment, counts) in deferred {
        let mut file = pipeline.deferred.reader(segment, counts.bytes)?;
        let mut blocks = BlockReader::new(pipeline.budget.max_block_bytes, &context.pool);
        while let Some(chunk) = block_in_place(|| file.next_chunk())? {
            blocks.push(&chunk);
            while let Some(block) = blocks.next_block().map_err(WorkError::from)? {
                block_in_place(|| question.add(&block, key_columns, about, store))?;
                if question.is_full() {
                    let question = std::mem::take(&mut question);
                    ask_and_count(context, journal, question, about, store).await?;
                }
            }
        }
        blocks.finish().map_err(WorkError::from)?;
    }
    match question.is_empty() {
        true => Ok(()),
        false => ask_and_count(context, journal, question, about, store).await,
    }
}

/// Looks up traces that are not near their rows, before these are written.
///
/// # Errors
/// [`Error`] if the server or the store fails, or on a signal.
pub(super) async fn look_up_missing(
    context: &Context,
    journal: &mut Journal,
    question: Question,
    store: &TraceStore,
) -> Result<(), Error> {
    match question.is_empty() {
        true => Ok(()),
        false => ask_and_count(context, journal, question, About::Missing, store).await,
    }
}

async fn ask_and_count(
    context: &Context,
    journal: &mut Journal,
    mut question: Question,
    about: About,
    store: &TraceStore,
) -> Result<(), Error> {
    if about == About::Missing {
        let max_bytes = context.options.budget.load_block_bytes;
        block_in_place(|| question.settle_on_loaded_days(store, max_bytes))?;
        if question.is_empty() || !context.options.subject.remote_lookup {
            return Ok(());
        }
    }
    let answer = ask(context, &question, about, store).await?;
    if about == About::Moved {
        return Ok(());
    }
    journal.commit_with(store, |checkpoint| {
        let remote = &mut checkpoint.remote;
        remote.asked += question.len() as u64;
        remote.found += answer.found;
        let room = NOT_FOUND_LISTED.saturating_sub(remote.not_found.len());
        let not_found = answer.not_found.into_iter().take(room);
        remote
            .not_found
            .extend(not_found.map(|(project, id)| (project.into(), id.into())));
    })
}

/// Finds traces on both loaded and other days, and settles which version wins.
///
/// # Errors
/// [`Error`] if the server or the store fails, or on a signal.
pub(super) async fn settle_far_moved(context: &Context, store: &TraceStore) -> Result<(), Error> {
    // A root span is written with the month of its trace's latest version, so that version must be
    // known.
    let is_wanted = context.options.subject.remote_lookup || context.options.subject.root_spans;
    if !is_wanted || !context.inspected.has_more_traces {
        return Ok(());
    }
    let days = context.days_of_traces();
    let source = context.trace_source();
    let mut last = None;
    loop {
        let moved = async { Ok(source.moved_far(&days, last.as_ref()).await?) };
        let moved = context.unless_interrupted(moved).await?;
        let Some(final_one) = moved.last().cloned() else {
            return Ok(());
        };
        last = Some(final_one);
        let are_all = moved.len() < MOVED_AT_ONCE;
        ask(context, &Question::of(moved), About::Moved, store).await?;
        if are_all {
            return Ok(());
        }
    }
}

/// Looks up a batch, with retries.
async fn ask(
    context: &Context,
    question: &Question,
    about: About,
    store: &TraceStore,
) -> Result<Answer, Error> {
    let count = question.len();
    let doing = format!("looking for {count} traces in other months");
    let failed = format!("cannot look for {count} traces in other months");
    let mut attempts =
        WorkAttempts::new(&context.retries, doing, failed).in_blocks_of(versions::BLOCK_ROWS);
    let source = context.trace_source();
    loop {
        let rows = attempts.block_rows();
        match source
            .ask(question, about, store, rows, &context.shutdown)
            .await
        {
            Ok(answer) => return Ok(answer),
            Err(error) => attempts.failed(error).await?,
        }
    }
}
