//! Styles of progress.

/// A style of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Bars on a terminal.
    Terminal,
    /// A line from time to time.
    Lines,
    /// Nothing.
    Quiet,
}
