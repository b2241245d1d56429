//! What becomes of a run that the state directory holds already.

use crate::cli::Environment;
use crate::cli::arguments::RunArguments;
use crate::error::Error;

/// What becomes of an earlier run of the same month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Earlier {
    /// An unfinished one is an error, so that nothing is begun anew by accident.
    #[default]
    Refuse,
    /// It is continued; that there is none is an error.
    Resume,
    /// It is continued, and where there is none one is started. Nobody watches: what passes by
    /// itself (the server is not there yet, the process before has not ended yet) is waited for.
    ResumeOrStart,
    /// It is discarded.
    Restart,
}

impl Earlier {
    /// The command line counts before the environment.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) where the variable is neither true nor false.
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
