//! What to do with a run already in the state directory.

use crate::cli::Environment;
use crate::cli::arguments::RunArguments;
use crate::error::Error;

/// What to do with an earlier run of the same month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Earlier {
    /// Fail if it is unfinished, so that nobody starts over by accident.
    #[default]
    Refuse,
    /// Continue it. Fail if there is none.
    Resume,
    /// Continue it, or start one. Nobody watches such a run, so it waits for what resolves itself: a
    /// server that is starting, a previous process that is ending.
    ResumeOrStart,
    /// Discard it.
    Restart,
}

impl Earlier {
    /// From the command line, or else `RESUME_OR_START`.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) if the variable is neither true nor false.
    pub(super) fn of(arguments: &RunArguments, environment: &Environment) -> Result<Self, Error> {
        let from_environment = environment.flag("RESUME_OR_START")?;
        Ok(
            match (
                arguments.resume,
                arguments.restart,
                arguments.resume_or_start || from_environment,
            ) {
                (true, ..) => Self::Resume,
                (_, true, _) => Self::Restart,
                (.., true) => Self::ResumeOrStart,
                _ => Self::Refuse,
            },
        )
    }

    /// Whether an unfinished run is continued.
    pub(crate) fn continues(self) -> bool {
        matches!(self, Self::Resume | Self::ResumeOrStart)
    }
}
