//! A number of a page, and how good it is.

/// How good something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// It is as it should be.
    Good,
    /// Neither.
    Neutral,
    /// Somebody should do something about it.
    Warning,
    /// It is not as it should be.
    Bad,
}

impl Tone {
    /// Its class in the page.
    pub(super) fn class(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Neutral => "neutral",
            Tone::Warning => "warning",
            Tone::Bad => "bad",
        }
    }
}

/// A name and what goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fact {
    pub name: &'static str,
    pub value: String,
    /// How good that is.
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
