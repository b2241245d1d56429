//! Why a piece of work did not come off, and whether there is use in trying again.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::clickhouse::RequestError;
use crate::clickhouse::retry::Hope;
use crate::enrich::EnrichError;
use crate::error::{Advice, Error};
use crate::memory::ByteSize;
use crate::native::NativeError;
use crate::state::files::{advice_on_files, advice_on_words};
use crate::trace_store::StoreError;

/// Why reading, enriching or writing some rows did not work, before it is
/// decided whether to try again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WorkError {
    /// The server or the way to it.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// An insert failed, and a part of its rows may be there.
    #[error("an insert into {table} failed: {error}")]
    InsertFailed {
        /// The target.
        table: String,
        /// What the server, or the way to it, said.
        error: RequestError,
        /// Whether what was refused was a single block, which the server does not divide.
        is_single_block: bool,
    },
    /// What the server sent.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// The trace store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file in the state directory.
    #[error("the file {} cannot be used: {message}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's words.
        message: String,
        /// What to do about it, if there is something.
        advice: Option<Advice>,
    },
    /// The spans of a trace do not fit into memory together.
    #[error("trace {trace} of project {project} has spans of more than {} of ids", ByteSize(*limit as u64))]
    LargeTrace {
        /// `project_id`
        project: String,
        /// `id`
        trace: String,
        /// Bytes that all its ids may take.
        limit: usize,
    },
    /// The run was asked to end.
    #[error("interrupted")]
    Interrupted,
}

impl WorkError {
    /// A file that cannot be used.
    pub(crate) fn file(path: &Path, error: &std::io::Error) -> Self {
        WorkError::File {
            path: path.to_owned(),
            message: error.to_string(),
            advice: advice_on_files(error),
        }
    }

    /// Its kind, for statistics.
    pub(crate) fn kind(&self) -> Cow<'static, str> {
        match self {
            WorkError::Request(error) | WorkError::InsertFailed { error, .. } => error.kind(),
            WorkError::Native(_) => "damaged_answer".into(),
            WorkError::Store(_) => "store".into(),
            WorkError::File { .. } => "file".into(),
            WorkError::LargeTrace { .. } => "large_trace".into(),
            WorkError::Interrupted => "interrupted".into(),
        }
    }

    /// Whether there is use in trying again.
    pub(crate) fn hope(&self) -> Hope {
        match self {
            WorkError::Native(NativeError::Corrupt(_) | NativeError::Type { .. }) => {
                Hope::UnlessRepeated
            }
            // For the smallest that there is, where an insert was divided before.
            WorkError::Request(error)
            | WorkError::InsertFailed {
                error,
                is_single_block: true,
                ..
            } if error.is_of_statement() => Hope::Rare,
            _ => self.is_passing().into(),
        }
    }

    /// Whether the same work may succeed later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            WorkError::Request(error) => error.is_passing(),
            // Later parts are smaller.
            WorkError::InsertFailed {
                error,
                is_single_block,
                ..
            } => error.is_passing() || (error.is_too_large() && !is_single_block),
            // A response that was cut or garbled on its way is sent again. A type that is
            // not known is garbled too: every column was asked for in a type that is.
            WorkError::Native(
                NativeError::Truncated { .. } | NativeError::Corrupt(_) | NativeError::Type { .. },
            ) => true,
            WorkError::Native(_)
            | WorkError::Store(_)
            | WorkError::File { .. }
            | WorkError::LargeTrace { .. }
            | WorkError::Interrupted => false,
        }
    }
}

/// By how much fewer rows per block are asked for when a block was too large.
const SMALLER_BLOCKS: usize = 8;

impl WorkError {
    /// How many rows to ask for in a block after one of up to `block_rows` was
    /// too large; `None` where the error is another, or rows cannot be fewer.
    pub(crate) fn smaller_blocks(&self, block_rows: usize) -> Option<usize> {
        let rows = match self {
            WorkError::Native(NativeError::TooLarge { rows, .. }) => *rows,
            WorkError::InsertFailed {
                error,
                is_single_block: true,
                ..
            } if error.is_too_large() => block_rows,
            _ => return None,
        };
        let rows = rows.min(block_rows);
        (rows > 1).then(|| (rows / SMALLER_BLOCKS).max(1))
    }

    /// What to do about it, if there is something.
    pub(crate) fn advice(&self) -> Option<Advice> {
        match self {
            WorkError::Native(NativeError::TooLarge { rows: 1, .. }) => {
                Some(Advice::MakeRoomForRow)
            }
            WorkError::Store(StoreError::Database { message, .. }) => advice_on_words(message),
            WorkError::File { advice, .. } => advice.clone(),
            WorkError::LargeTrace { .. } => Some(Advice::RaiseMemoryLimit),
            WorkError::InsertFailed { error, .. } if error.is_too_large() => {
                Some(Advice::RaiseServerLimit)
            }
            _ => None,
        }
    }
}

/// There is no use in trying again.
impl From<WorkError> for Error {
    fn from(error: WorkError) -> Self {
        Error::failed(error.to_string()).with(error.advice())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        WorkError::Store(error).into()
    }
}

impl From<EnrichError> for WorkError {
    fn from(error: EnrichError) -> Self {
        match error {
            EnrichError::Native(error) => WorkError::Native(error),
            EnrichError::Store(error) => WorkError::Store(error),
        }
    }
}
