//! Parses `--until`.

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// Parses a time into microseconds since 1970.
///
/// # Errors
/// A message that names `--until`, if the text is not a time or is out of range.
pub(super) fn parse(text: &str) -> Result<i64, String> {
    let plain = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| PrimitiveDateTime::parse(text, plain).map(PrimitiveDateTime::assume_utc))
        .map_err(|_| {
            format!(
                "--until is '{text}': write a time as 2026-11-26T18:00:00Z, or as \
                 '2026-11-26 18:00:00' in UTC"
            )
        })?;
    let microseconds = moment.unix_timestamp_nanos().div_euclid(1_000);
    i64::try_from(microseconds).map_err(|_| format!("--until is '{text}', which is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_told_in_two_ways() {
        let moment = Ok(1_717_408_800_000_000);
        assert_eq!(parse("2024-06-03 10:00:00"), moment);
        assert_eq!(parse("2024-06-03T12:00:00+02:00"), moment);
        for wrong in ["", "yesterday", "2024-06-03", "2024-13-03 10:00:00"] {
            assert!(parse(wrong).unwrap_err().contains("--until"), "{wrong}");
        }
    }
}
