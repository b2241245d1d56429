//! Describes a wrong row for people.

use serde::Serialize;
use serde_bytes::ByteBuf;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::findings::{Finding, Kind};
use super::rows::{Details, EventKey};

/// Characters shown of a value.
const SHOWN: usize = 80;
/// Characters shown before the first difference.
const SHOWN_BEFORE: usize = 10;
/// Columns shown only by length and position, since they hold what users said.
const NOT_SHOWN: [&str; 2] = ["input", "output"];

/// An example of a wrong row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Example {
    /// The project.
    pub project_id: String,
    /// The trace.
    pub trace_id: String,
    /// The span.
    pub span_id: String,
    /// Its start, in UTC.
    pub start_time: String,
    /// What is wrong with it.
    pub problem: String,
    /// The columns that differ.
    pub columns: Vec<String>,
}

impl Example {
    /// An example without differing columns.
    pub(crate) fn new(key: &EventKey, finding: &Finding) -> Self {
        Self {
            project_id: readable(&key.project),
            trace_id: readable(&key.trace_id),
            span_id: readable(&key.span_id),
            start_time: moment(key.start),
            problem: problem(key, finding),
            columns: Vec::new(),
        }
    }

    /// Says which table it is about, for a row of the table that a view fills.
    #[must_use]
    pub(crate) fn in_core(mut self, kind: Kind, table: &str) -> Self {
        self.problem = match kind {
            Kind::MissingInCore => format!("missing in {table}"),
            Kind::DifferentInCore => format!("differs in {table} from what the view makes of it"),
            Kind::ExtraInCore => format!("exists only in {table}"),
            _ => return self,
        };
        self
    }

    /// Adds the columns that differ.
    #[must_use]
    pub(crate) fn with_columns(
        mut self,
        names: &[&str],
        expected: Option<&Details>,
        actual: Option<&Details>,
    ) -> Self {
        let (Some(expected), Some(actual)) = (expected, actual) else {
            "written or deleted since".clone_into(&mut self.problem);
            return self;
        };
        let mut differences = Vec::new();
        for (index, name) in names.iter().enumerate() {
            if expected.hashes.get(index) != actual.hashes.get(index) {
                self.columns.push((*name).to_owned());
                let text = |details: &Details| details.texts.get(index).cloned().flatten();
                differences.push(difference(name, text(actual), text(expected)));
            }
        }
        self.problem = match differences.is_empty() {
            true => "rewritten since, and now as it should be".to_owned(),
            false => differences.join("; "),
        };
        self
    }
}

impl std::fmt::Display for Example {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "project {}, trace {}, span {}, {}: {}",
            self.project_id, self.trace_id, self.span_id, self.start_time, self.problem
        )
    }
}

fn problem(key: &EventKey, finding: &Finding) -> String {
    match (finding.kind, &finding.origin) {
        (Kind::Missing, _) => "missing".to_owned(),
        (Kind::Doubled, Some(place)) if place.trace_id != key.trace_id => {
            let trace = readable(&place.trace_id);
            format!("extra event: the observation belongs to trace {trace}")
        }
        (Kind::Doubled, Some(place)) => {
            let start = moment(place.start);
            format!("extra event: the right one starts at {start}")
        }
        (Kind::Doubled, None) => "the event exists more than once".to_owned(),
        (Kind::Superseded, Some(place)) => {
            let start = moment(place.start);
            format!("superseded event: the right one starts at {start}")
        }
        (Kind::Superseded, None) => {
            "superseded event: the observation has since been deleted".to_owned()
        }
        (Kind::Experiment, _) => {
            "its experiment columns do not match its dataset run item".to_owned()
        }
        (Kind::SecondRoot, _) => "second root span: the trace already has a live one".to_owned(),
        (Kind::BesideLive, _) => {
            "extra event: the span has a live event that starts at another time".to_owned()
        }
        _ if key.span_id.strip_prefix(b"t-") == Some(&key.trace_id[..]) => {
            "the event belongs to no observation and is not a trace's root span".to_owned()
        }
        _ => "the event belongs to no observation".to_owned(),
    }
}

/// Microseconds since 1970 as UTC, with only as many digits as needed.
pub(super) fn moment(microseconds: i64) -> String {
    let milliseconds =
        format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]");
    let all =
        format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:6]");
    let text = OffsetDateTime::from_unix_timestamp_nanos(i128::from(microseconds) * 1_000)
        .ok()
        .and_then(|moment| match microseconds.rem_euclid(1_000) {
            0 => moment.format(&milliseconds).ok(),
            _ => moment.format(&all).ok(),
        });
    text.map_or_else(
        || format!("microsecond {microseconds}"),
        |text| text + " UTC",
    )
}

/// Microseconds since 1970 in RFC 3339.
pub(super) fn rfc3339(microseconds: i64) -> Option<String> {
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(microseconds) * 1_000);
    moment.ok()?.format(&Rfc3339).ok()
}

fn difference(name: &str, actual: Option<ByteBuf>, expected: Option<ByteBuf>) -> String {
    let (Some(actual), Some(expected)) = (&actual, &expected) else {
        return format!(
            "{name} is {}, should be {}",
            short(actual.as_ref()),
            short(expected.as_ref())
        );
    };
    let same = actual
        .iter()
        .zip(expected.iter())
        .take_while(|(a, b)| a == b);
    let same = same.count();
    if NOT_SHOWN.contains(&name) {
        return format!(
            "{name} has {} bytes, should have {}; they agree in the first {same}",
            actual.len(),
            expected.len()
        );
    }
    let is_short = |text: &ByteBuf| readable(text).chars().count() <= SHOWN;
    if is_short(actual) && is_short(expected) {
        return format!(
            "{name} is '{}', should be '{}'",
            readable(actual),
            readable(expected)
        );
    }
    format!(
        "{name} has {} bytes, should have {}; from byte {same} on it is {}, should be {}",
        actual.len(),
        expected.len(),
        around(actual, same),
        around(expected, same)
    )
}

/// The start of a value.
fn short(value: Option<&ByteBuf>) -> String {
    value.map_or_else(|| "NULL".to_owned(), |text| shortened(&readable(text)))
}

/// The text around a position, in bytes.
fn around(text: &ByteBuf, place: usize) -> String {
    let start = place.saturating_sub(SHOWN_BEFORE);
    let before = if start > 0 { "…" } else { "" };
    let rest = text.get(start..).unwrap_or_default();
    // Enough to show, and little of what may be megabytes.
    let rest = &rest[..rest.len().min(SHOWN * 4)];
    format!("{before}{}", shortened(&readable(rest)))
}

fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("'{shown}'")
}

/// Escapes bytes for one terminal line.
fn readable(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Option<ByteBuf> {
        Some(ByteBuf::from(text))
    }

    #[test]
    fn a_difference_is_told_shortly() {
        assert_eq!(
            difference("user_id", bytes("a"), bytes("b")),
            "user_id is 'a', should be 'b'"
        );
        assert_eq!(
            difference("end_time", None, bytes("")),
            "end_time is NULL, should be ''"
        );
        assert_eq!(
            difference("name", bytes("a\nb"), bytes("\u{1b}[31m")),
            "name is 'a\\nb', should be '\\u{1b}[31m'"
        );
    }

    #[test]
    fn prompts_are_not_shown() {
        assert_eq!(
            difference("input", bytes("secret"), bytes("secreT and more")),
            "input has 6 bytes, should have 15; they agree in the first 5"
        );
    }

    #[test]
    fn long_values_are_shown_where_they_differ() {
        let same = "x".repeat(500);
        let told = difference(
            "tags",
            bytes(&format!("{same}here{same}")),
            bytes(&format!("{same}there{same}")),
        );
        assert!(told.contains("has 1004 bytes, should have 1005"), "{told}");
        assert!(
            told.contains("from byte 500 on it is …'xxxxxxxxxxhere"),
            "{told}"
        );
        assert!(told.contains("should be …'xxxxxxxxxxthere"), "{told}");
        assert!(told.chars().count() < 300, "{told}");
    }

    #[test]
    fn a_moment_has_the_digits_it_needs() {
        assert_eq!(moment(1_717_408_800_123_000), "2024-06-03 10:00:00.123 UTC");
        assert_eq!(
            moment(1_717_408_800_123_456),
            "2024-06-03 10:00:00.123456 UTC"
        );
        assert_eq!(moment(i64::MAX), format!("microsecond {}", i64::MAX));
    }

    #[test]
    fn columns_differ_where_their_hashes_do() {
        let details = |hash, text| Details {
            hashes: vec![1, hash],
            texts: vec![bytes("same"), bytes(text)],
        };
        let key = EventKey {
            project: ByteBuf::from("p"),
            trace_id: ByteBuf::from("t"),
            span_id: ByteBuf::from("s"),
            start: 0,
        };
        let finding = Finding {
            kind: Kind::Stale,
            start: 0,
            origin: None,
            of_trace: false,
        };
        let example = Example::new(&key, &finding).with_columns(
            &["name", "user_id"],
            Some(&details(2, "b")),
            Some(&details(3, "a")),
        );
        assert_eq!(example.columns, ["user_id"]);
        assert_eq!(
            example.to_string(),
            "project p, trace t, span s, 1970-01-01 00:00:00.000 UTC: \
             user_id is 'a', should be 'b'"
        );
    }
}
