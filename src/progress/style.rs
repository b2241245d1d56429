//! How progress is shown.

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Bars.
    Terminal,
    /// A line now and then.
    Lines,
    /// Nothing.
    Quiet,
}
