//! Decides which settings to send with each statement: those that the server knows and the user may set.

use std::collections::BTreeMap;
use std::time::Duration;

use super::connection::Connection;
use super::error::RequestError;
use super::quoting;
use super::settings::{
    COMPRESSION_LEVEL, GIVING_WAY, Known, MEANING, OF_INSERTS, OF_STATEMENTS, PREFERENCES,
};

/// Settings for the query that asks for the settings. All servers know these.
const OF_QUESTION: &[(&str, &str)] = &[
    ("dialect", "clickhouse"),
    ("limit", "0"),
    ("offset", "0"),
    ("additional_table_filters", "{}"),
    ("additional_result_filter", ""),
    ("extremes", "0"),
    ("use_query_cache", "0"),
    ("http_write_exception_in_output_format", "0"),
    ("max_columns_to_read", "0"),
    ("max_rows_to_read", "0"),
    ("max_result_rows", "0"),
    ("max_query_size", "268435456"),
];

/// A server knows at least this many of the settings asked for; fewer mean a broken answer.
const FEWEST_KNOWN: usize = 100;

/// READONLY: the user may not change settings.
const READONLY: u32 = 164;

/// SETTING_CONSTRAINT_VIOLATION: the profile pins or bounds the setting.
const HELD: u32 = 452;

/// QUERY_CACHE_USED_WITH_SYSTEM_TABLE: the profile pins `use_query_cache`.
const CACHED: u32 = 719;

/// SYNTAX_ERROR, which ClickHouse also reports for a statement that is too long.
const SYNTAX: u32 = 62;

/// How long the server may take to answer such a query.
const PATIENCE: Duration = Duration::from_secs(30);

/// A setting in `system.settings`, as the user sees it.
struct Setting {
    value: String,
    is_constant: bool,
    is_bounded: bool,
}

impl Connection {
    /// Finds out which settings the server knows and the user may change. From then on every statement
    /// states the settings that its meaning depends on.
    ///
    /// # Errors
    /// [`RequestError::Held`] if the profile pins one of them to another value; other [`RequestError`]s
    /// if the server rejects the query or cannot be reached.
    pub async fn settle_settings(&self) -> Result<(), RequestError> {
        if self.settings.are_known() {
            return Ok(());
        }
        let there_are = self.settings_of_user().await?;
        let mut known = Known {
            sent: Vec::new(),
            held_limits: Vec::new(),
            of_inserts: Vec::new(),
        };
        for &(name, wanted) in MEANING {
            match there_are.get(name) {
                None => {}
                Some(setting) if self.may_be_set(name, wanted, setting).await? => {
                    known.sent.push((name, wanted));
                }
                Some(setting) if setting.value == wanted => {}
                Some(setting) => return Err(held(name, setting, Some(wanted))),
            }
        }
        for &(name, wanted) in PREFERENCES {
            match there_are.get(name) {
                Some(setting) if self.may_be_set(name, wanted, setting).await? => {
                    known.sent.push((name, wanted));
                }
                Some(setting) if name != COMPRESSION_LEVEL && setting.value != wanted => {
                    known.held_limits.push((name, setting.value.clone()));
                }
                _ => {}
            }
        }
        for &(name, wanted) in GIVING_WAY {
            if self.options.gives_way
                && let Some(setting) = there_are.get(name)
                && self.may_be_set(name, wanted, setting).await?
            {
                known.sent.push((name, wanted));
            }
        }
        for &(name, values) in OF_STATEMENTS {
            let Some(setting) = there_are.get(name) else {
                continue;
            };
            if !self.may_be_each_of(name, values, setting).await? {
                return Err(held(name, setting, None));
            }
        }
        for &(name, values) in OF_INSERTS {
            let Some(setting) = there_are.get(name) else {
                continue;
            };
            if self.may_be_each_of(name, values, setting).await? {
                known.of_inserts.push(name);
            }
        }
        // Another task may have been faster; it got the same answer.
        let _ = self.settings.known.set(known);
        Ok(())
    }

    /// The limits that the profile pins, with their values; a statement that exceeds one fails. Empty
    /// before the server has been asked.
    pub(crate) fn held_limits(&self) -> &[(&'static str, String)] {
        self.settings.held_limits()
    }

    /// How long a statement may take, if the profile pins a limit.
    pub(crate) fn longest_statement(&self) -> Option<Duration> {
        let mut held = self.held_limits().iter();
        let (_, seconds) = held.find(|limit| limit.0 == "max_execution_time")?;
        let seconds: f64 = seconds.parse().ok()?;
        (seconds > 0.0).then(|| Duration::try_from_secs_f64(seconds).ok())?
    }

    /// The answer to a question about the server itself.
    async fn told(&self, question: &str) -> Result<String, RequestError> {
        match self.text(question, OF_QUESTION, PATIENCE).await {
            Err(error) if matches!(error.code(), Some(READONLY | HELD)) => {
                let answer = self.text(question, &[], PATIENCE).await;
                answer.map_err(|error| held_by_question(&error).unwrap_or(error))
            }
            answer => answer,
        }
    }

    async fn settings_of_user(&self) -> Result<BTreeMap<String, Setting>, RequestError> {
        let names = MEANING.iter().chain(PREFERENCES).chain(GIVING_WAY);
        let names = names.map(|setting| setting.0);
        let single = OF_STATEMENTS.iter().chain(OF_INSERTS);
        let names = names.chain(single.map(|setting| setting.0));
        let names: Vec<String> = names.map(quoting::string).collect();
        // One row, since the profile may pin `limit` or `offset`. The server applies these before it
        // answers and then knows only that they changed, not their values.
        let question = format!(
            "SELECT arrayStringConcat(groupArray(concat(name, '\\t', toString(readonly), '\\t', \
             toString(toUInt8(isNotNull(min) OR isNotNull(max))), '\\t', \
             if(name IN ('limit', 'offset') AND changed, 'a number', value))), '\\n') \
             FROM system.settings WHERE name IN ({})",
            names.join(", ")
        );
        let answer = self.told(&question).await?;
        let settings: BTreeMap<String, Setting> = answer
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| {
                let fields: Vec<&str> = line.splitn(4, '\t').collect();
                let &[name, is_constant, is_bounded, value] = &fields[..] else {
                    return Err(RequestError::Unexpected(format!(
                        "asked for its settings, the server answered '{}'",
                        words(line)
                    )));
                };
                let setting = Setting {
                    value: value.trim_end_matches('\r').to_owned(),
                    is_constant: is_constant == "1",
                    is_bounded: is_bounded == "1",
                };
                Ok((name.to_owned(), setting))
            })
            .collect::<Result<_, RequestError>>()?;
        match settings.contains_key("limit") && settings.len() > FEWEST_KNOWN {
            true => Ok(settings),
            false => Err(RequestError::Unexpected(format!(
                "asked for its settings, the server returned only {}",
                settings.len()
            ))),
        }
    }

    /// The `readonly` level of the user's profile; `None` if the user may write.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn readonly_level(&self) -> Result<Option<u8>, RequestError> {
        let question = "SELECT value FROM system.settings WHERE name = 'readonly'";
        let value = self.told(question).await?;
        if value.trim().is_empty() {
            // The profile hides the rows of every answer.
            return Err(RequestError::Held {
                name: "offset or additional_result_filter",
                value: "…".to_owned(),
                wanted: Some(""),
            });
        }
        // `extremes` would add lines.
        let first = value.lines().next().unwrap_or_default();
        let level = first.trim().parse().map_err(|_| {
            RequestError::Unexpected(format!(
                "asked for a setting, the server answered '{}'",
                words(&value)
            ))
        })?;
        Ok((level != 0).then_some(level))
    }

    /// Whether the user may set it to each of `values`.
    async fn may_be_each_of(
        &self,
        name: &'static str,
        values: &[&'static str],
        setting: &Setting,
    ) -> Result<bool, RequestError> {
        for &wanted in values {
            if !self.may_be_set(name, wanted, setting).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the user may set it to `wanted`.
    async fn may_be_set(
        &self,
        name: &'static str,
        wanted: &'static str,
        setting: &Setting,
    ) -> Result<bool, RequestError> {
        if setting.is_constant || !setting.is_bounded {
            return Ok(!setting.is_constant);
        }
        // Only the server knows what a bound means: 0 is often "no limit", though less than any minimum.
        match self.text("SELECT 1", &[(name, wanted)], PATIENCE).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.code(), Some(HELD | READONLY)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The error for a setting that the profile pins to its current value.
fn held(name: &'static str, setting: &Setting, wanted: Option<&'static str>) -> RequestError {
    RequestError::Held {
        name,
        value: setting.value.clone(),
        wanted,
    }
}

/// The setting that the profile pins, if even the query for the settings fails because of it.
fn held_by_question(error: &RequestError) -> Option<RequestError> {
    let (name, value, wanted) = match error {
        RequestError::Exception { code: CACHED, .. } => ("use_query_cache", "1", "0"),
        RequestError::Exception {
            code: SYNTAX,
            message,
        } if message.contains("Max query size") => ("max_query_size", "a low one", "268435456"),
        _ => return None,
    };
    Some(RequestError::Held {
        name,
        value: value.to_owned(),
        wanted: Some(wanted),
    })
}

/// The beginning of an unusable answer, on one line.
fn words(answer: &str) -> String {
    let words: Vec<&str> = answer.split_whitespace().collect();
    words.join(" ").chars().take(60).collect()
}
