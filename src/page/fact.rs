//! Named values on the page.

/// How a value is to be judged, shown by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Good.
    Good,
    /// Neither good nor bad.
    Neutral,
    /// Needs attention.
    Warning,
    /// Bad.
    Bad,
}

impl Tone {
    /// CSS class.
    pub(super) fn class(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Neutral => "neutral",
            Tone::Warning => "warning",
            Tone::Bad => "bad",
        }
    }
}

/// A named value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fact {
    pub name: &'static str,
    pub value: String,
    /// How the value is to be judged.
    pub tone: Tone,
}

impl Fact {
    pub(super) fn new(name: &'static str, value: impl Into<String>) -> Self {
        Self {
            name,
            value: value.into(),
            tone: Tone::Neutral,
        }
    }
}
