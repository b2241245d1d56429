//! The HTML page about runs: a single file that loads nothing from the network.

mod axis;
mod chart;
mod charts;
mod columns;
mod fact;
mod month;

use askama::Template;

use self::fact::Fact;
pub(crate) use self::fact::Tone;
pub(crate) use self::month::Month;
use crate::error::Error;
use crate::memory::ByteSize;
use crate::memory::numbers::whole;
use crate::partition::seconds_since_1970;
use crate::progress::moment::Moment;
use crate::progress::words::{about, count};

/// The page's template.
#[derive(Template)]
#[template(path = "page.html", config = "src/page/askama.toml")]
struct Page<'a> {
    version: &'static str,
    made_at: String,
    target: String,
    facts: Vec<Fact>,
    /// What is left to do: month and sentence.
    left_to_do: Vec<(&'a str, &'a str)>,
    months: &'a [Month],
}

/// A piece of a sentence.
struct Piece<'a> {
    /// Whether it is a command to type.
    is_code: bool,
    text: &'a str,
}

/// Splits a sentence at backquotes, which enclose commands to type.
fn pieces(sentence: &str) -> impl Iterator<Item = Piece<'_>> {
    let pieces = sentence.split('`').enumerate();
    pieces.map(|(index, text)| Piece {
        is_code: index % 2 == 1,
        text,
    })
}

/// Renders a page about these months, newest first.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) if rendering fails.
pub(crate) fn html(months: &[Month]) -> Result<String, Error> {
    let now = Moment(seconds_since_1970()).to_string();
    let left_to_do = months.iter().flat_map(|month| {
        let sentences = month.left_to_do.iter();
        sentences.map(|sentence| (month.partition.as_str(), sentence.as_str()))
    });
    let page = Page {
        version: env!("CARGO_PKG_VERSION"),
        made_at: now.replace('T', " ").replace('Z', " UTC"),
        target: targets(months).join(", "),
        facts: facts(months),
        left_to_do: left_to_do.collect(),
        months,
    };
    page.render()
        .map_err(|error| Error::caused("cannot render the page", error))
}

/// The target tables, without duplicates.
fn targets(months: &[Month]) -> Vec<&str> {
    let mut targets: Vec<&str> = Vec::new();
    for target in months.iter().filter_map(|month| month.target.as_deref()) {
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    targets
}

/// Key figures of all months.
fn facts(months: &[Month]) -> Vec<Fact> {
    let done = months.iter().filter(|month| month.is_done).count();
    let sum = |number: fn(&Month) -> u64| months.iter().map(number).sum::<u64>();
    let seconds: f64 = months.iter().map(Month::seconds_at_work).sum();
    let peak = months.iter().map(Month::peak_bytes).max().unwrap_or(0);
    let mut facts = vec![
        Fact {
            tone: match done == months.len() {
                true => Tone::Good,
                false => Tone::Neutral,
            },
            ..Fact::new("Months done", format!("{done} of {}", months.len()))
        },
        Fact::new("Events written", count(sum(Month::events))),
        Fact::new("Observations", count(sum(|month| month.observations))),
        Fact::new("Traces", count(sum(|month| month.traces))),
        Fact::new("Time at work", about(seconds)),
        Fact::new("Peak memory", ByteSize(peak).to_string()),
    ];
    let rows = sum(Month::rows_at_work);
    let writing: f64 = months.iter().map(Month::seconds_of_writing).sum();
    if writing > 0.0 {
        let rate = count(whole(rows as f64 / writing));
        facts.insert(5, Fact::new("Throughput", format!("{rate} events/s")));
    }
    facts.push(checked(months));
    facts
}

/// The results of verify for all months.
fn checked(months: &[Month]) -> Fact {
    let verified = months.iter().map(Month::verified).collect::<Vec<_>>();
    let equal = verified.iter().filter(|said| **said == Some(Ok(())));
    let differ = verified.iter().filter(|said| matches!(said, Some(Err(_))));
    let (equal, differ) = (equal.count(), differ.count());
    let (value, tone) = match (equal, differ) {
        (0, 0) => ("not yet".to_owned(), Tone::Neutral),
        (equal, 0) if equal == months.len() => ("equal".to_owned(), Tone::Good),
        (equal, 0) => (format!("{equal} of {} equal", months.len()), Tone::Neutral),
        (_, differ) => (format!("{differ} not equal"), Tone::Bad),
    };
    Fact {
        tone,
        ..Fact::new("Verified", value)
    }
}
