//! Traces that are not where a look-up expects them, on their row's day or beside it: on other days that
//! are loaded, or not loaded at all. They are asked for thousands at a time, wherever they are.

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

/// Most traces not found that the report lists.
const NOT_FOUND_LISTED: usize = 100;

/// Looks for the traces of all rows that wait: on the days that are loaded, then in ClickHouse.
///
/// # Errors
/// [`Error`] where it does not work, or the run is asked to end.
pub(super) async fn look_up_deferred(
    context: &Context,
    journal: &mut Journal,
    pipeline: &Pipeline,
    source: Source,
    store: &TraceStore,
) -> Result<(), Error> {
    let key_columns = context.inspected.mapping_of(source).key_columns;
    // A trace that waits itself may be known in an older version, which must not count.
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

/// Finds the traces that are on a day that is loaded and on days that are not, and which of
/// their versions counts.
///
/// # Errors
/// [`Error`] where it does not work, or the run is asked to end.
pub(super) async fn settle_far_moved(context: &Context, store: &TraceStore) -> Result<(), Error> {
    // A root span is written by the month in which its trace's latest version lies, so that
    // one must be known.
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

/// Asks a question, again and again while what stops it may pass.
async fn ask(
    context: &Context,
    question: &Question,
    about: About,
    store: &TraceStore,
) -> Result<Answer, Error> {
    let count = question.len();
    let doing = format!("looking for {count} traces in other months");
    let failed = format!("{count} traces could not be looked for in other months");
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
