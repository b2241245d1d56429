//! Why work failed, and whether to retry it.

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

/// Why reading, enriching or writing rows failed, before deciding on a retry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WorkError {
    /// The server rejected a request or could not be reached.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// An insert failed; some of its rows may be in the target.
    #[error("an insert into {table} failed: {error}")]
    InsertFailed {
        /// The target table.
        table: String,
        /// Why it failed.
        error: RequestError,
        /// Whether a single block was rejected, which the server does not split.
        is_single_block: bool,
    },
    /// The server's answer is damaged or too large.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// The trace store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file in the state directory failed.
    #[error("cannot use file {}: {message}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// The operating system's message.
        message: String,
        /// What to do, if known.
        advice: Option<Advice>,
    },
    /// A trace's spans do not fit in memory together.
    #[error("the span ids of trace {trace} in project {project} exceed {}", ByteSize(*limit as u64))]
    LargeTrace {
        /// `project_id`
        project: String,
        /// `id`
        trace: String,
        /// Memory limit for its ids, in bytes.
        limit: usize,
    },
    /// The server wrote another number of rows than it had to.
    #[error(
        "ClickHouse reports {written} rows where {rows} were expected: the rows of the segment may have \
         changed meanwhile, or a view counts otherwise"
    )]
    RowsDiffer {
        /// Rows that it had to write.
        rows: u64,
        /// Rows that it wrote, those of views included.
        written: u64,
    },
    /// The run received a signal.
    #[error("interrupted")]
    Interrupted,
}

impl WorkError {
    /// An error for a file.
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
            WorkError::RowsDiffer { .. } => "rows_differ".into(),
            WorkError::Interrupted => "interrupted".into(),
        }
    }

    /// Whether a retry may help.
    pub(crate) fn hope(&self) -> Hope {
        match self {
            WorkError::Native(NativeError::Corrupt(_) | NativeError::Type { .. }) => {
                Hope::UnlessRepeated
            }
            // Even at the smallest size, since the insert was divided before.
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
            // A cut or garbled response is sent again. An unknown type is garbled too: every column
            // was requested in a known type.
            WorkError::Native(
                NativeError::Truncated { .. } | NativeError::Corrupt(_) | NativeError::Type { .. },
            ) => true,
            // What is there is read first.
            WorkError::RowsDiffer { .. } => true,
            WorkError::Native(_)
            | WorkError::Store(_)
            | WorkError::File { .. }
            | WorkError::LargeTrace { .. }
            | WorkError::Interrupted => false,
        }
    }
}

/// Factor by which blocks get fewer rows after one was too large.
const SMALLER_BLOCKS: usize = 8;

impl WorkError {
    /// The number of rows per block to request after a block of up to `block_rows` was too large.
    /// `None` for other errors, or if one row is already the limit.
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

    /// What to do, if known.
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

/// For work that will not be retried.
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
