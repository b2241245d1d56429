//! What can go wrong between this program and a ClickHouse server, and which of it passes by itself.
//!
//! What is done about it is decided where it is met: `backfill/pipeline/item.rs` reads a segment again,
//! and `backfill/work_attempts.rs` tries all other work again.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::time::Duration;

use crate::error::Advice;
use crate::memory::open_files;

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// ClickHouse answered with an exception.
    #[error("ClickHouse answered with error {code}: {message}{}", limit_named(*code, message))]
    Exception {
        /// The number in `system.errors`.
        code: u32,
        /// The server's own words, without code and version.
        message: String,
    },
    /// Something answered, but not with a ClickHouse exception: a proxy, or not ClickHouse at all.
    #[error("the answer{} is not ClickHouse's: {message}", describe_status(*status))]
    Http {
        /// The HTTP status, where it is known.
        status: Option<u16>,
        /// The beginning of the body, or the status in words.
        message: String,
    },
    /// The connection could not be made, or broke.
    #[error("the connection to ClickHouse failed: {0}")]
    Network(String),
    /// The connection for an insert could not be made, so that nothing of it was sent.
    #[error("the connection to ClickHouse failed: {0}")]
    NotConnected(String),
    /// Nothing came for too long.
    #[error("ClickHouse did not {doing} within {} seconds", limit.as_secs())]
    TimedOut {
        /// What was waited for.
        doing: &'static str,
        /// How long.
        limit: Duration,
    },
    /// A setting that the meaning of all statements depends on, which the user's profile holds at
    /// another value.
    #[error(
        "the user's settings profile holds {name} = {value}, with which this would fail, or read and \
         write what is wrong: let the profile allow to change it{}",
        wanted.map(|wanted| format!(", or set it to '{wanted}' there")).unwrap_or_default()
    )]
    Held {
        /// Its name.
        name: &'static str,
        /// What it is.
        value: String,
        /// What it must be, where that is always the same.
        wanted: Option<&'static str>,
    },
    /// A proxy has packed the answer. Which kind of packing it is, the client does not tell.
    #[error(
        "a proxy before ClickHouse compresses its answers (with gzip, for example), which was not asked \
         for: turn that off for this address"
    )]
    Compressed,
    /// The server's certificate is not accepted.
    #[error("the server's certificate is not accepted: {0}")]
    Certificate(String),
    /// An answer that does not mean what it must.
    #[error("{0}")]
    Unexpected(String),
}

/// Longest part of a server's message that is shown, in characters.
const MAX_MESSAGE: usize = 600;

/// Exceptions after which the same request may succeed later.
/// Numbers and names from <https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp>.
const PASSING: &[u32] = &[
    3,    // UNEXPECTED_END_OF_FILE: the connection broke while the server read an insert
    32,   // ATTEMPT_TO_READ_AFTER_EOF: likewise
    33,   // CANNOT_READ_ALL_DATA: likewise
    107,  // FILE_DOESNT_EXIST: a part was merged away
    159,  // TIMEOUT_EXCEEDED
    173,  // CANNOT_ALLOCATE_MEMORY
    198,  // DNS_ERROR
    201,  // QUOTA_EXCEEDED
    202,  // TOO_MANY_SIMULTANEOUS_QUERIES
    203,  // NO_FREE_CONNECTION
    209,  // SOCKET_TIMEOUT
    210,  // NETWORK_ERROR
    225,  // NO_ZOOKEEPER: a replica that has not reached Keeper since it was started
    236,  // ABORTED: the server is shutting down
    241,  // MEMORY_LIMIT_EXCEEDED: merges or other queries will give it back
    242,  // TABLE_IS_READ_ONLY: a replica that lost its Keeper session
    252,  // TOO_MANY_PARTS
    279,  // ALL_CONNECTION_TRIES_FAILED
    285,  // TOO_FEW_LIVE_REPLICAS
    319,  // UNKNOWN_STATUS_OF_INSERT
    364,  // UNEXPECTED_ZOOKEEPER_ERROR
    394,  // QUERY_WAS_CANCELLED
    425,  // SYSTEM_ERROR
    439,  // CANNOT_SCHEDULE_TASK
    499,  // S3_ERROR
    618,  // LZ4_DECODER_FAILED: an insert was garbled on its way
    667, // NOT_INITIALIZED: an insert into a replica that has not reached Keeper since it was started
    735, // QUERY_WAS_CANCELLED_BY_CLIENT: the connection broke while the server answered
    745, // SERVER_OVERLOADED
    999, // KEEPER_EXCEPTION
    1000, // POCO_EXCEPTION: a broken socket
];

/// Exceptions that say that another replica may do what this one cannot now.
const OF_REPLICA: &[u32] = &[
    225, // NO_ZOOKEEPER: it has not reached Keeper since it was started
    236, // ABORTED: the server is shutting down
    242, // TABLE_IS_READ_ONLY: a replica that lost its Keeper session
    364, // UNEXPECTED_ZOOKEEPER_ERROR
    667, // NOT_INITIALIZED: it has not reached Keeper since it was started
    745, // SERVER_OVERLOADED
    999, // KEEPER_EXCEPTION
];

/// Exceptions that say that the server lacks memory for what was sent.
const LACK_OF_MEMORY: &[u32] = &[
    173, // CANNOT_ALLOCATE_MEMORY
    241, // MEMORY_LIMIT_EXCEEDED
];

/// Part of the message of an exception that has the code of a cut connection,
/// and comes from a type that does not fit.
const CONVERSION_FAILED: &str = "while converting column";

/// TIMEOUT_EXCEEDED
const TIMEOUT: u32 = 159;
/// NO_ZOOKEEPER, TABLE_IS_READ_ONLY and NOT_INITIALIZED: the replica cannot write without Keeper.
const READ_ONLY: &[u32] = &[225, 242, 667];
/// MEMORY_LIMIT_EXCEEDED
const MEMORY: u32 = 241;

/// Limits of the user's settings profile, by the exception that says that one is met. All of them are
/// lifted where the profile lets us.
const LIMITS: &[(u32, &str)] = &[
    (
        158,
        "max_rows_to_read, max_result_rows or max_rows_to_group_by",
    ), // TOO_MANY_ROWS
    (160, "min_execution_speed or max_estimated_execution_time"), // TOO_SLOW
    (161, "max_columns_to_read"),                                 // TOO_MANY_COLUMNS
    (165, "max_temporary_columns"),                               // TOO_MANY_TEMPORARY_COLUMNS
    (166, "max_temporary_non_const_columns"), // TOO_MANY_TEMPORARY_NON_CONST_COLUMNS
    (191, "max_rows_in_set or max_rows_in_join"), // SET_SIZE_LIMIT_EXCEEDED
    (307, "max_bytes_to_read"),               // TOO_MANY_BYTES
    (396, "max_result_rows or max_result_bytes"), // TOO_MANY_ROWS_OR_BYTES
    (565, "max_partitions_to_read"),          // TOO_MANY_PARTITIONS
];

/// Whether it is a limit of time that the profile holds, so that it will be met again: where it may be
/// lifted, it is.
fn is_limit_of_time(code: u32, message: &str) -> bool {
    code == TIMEOUT && message.contains("maximum")
}

/// What a limit of the user's settings profile is called, and what to do.
fn limit_named(code: u32, message: &str) -> Cow<'static, str> {
    if let Some((_, name)) = LIMITS.iter().find(|limit| limit.0 == code) {
        return format!(
            "; it is a limit of the user's settings profile ({name}): let the profile allow more"
        )
        .into();
    }
    let advice = match code {
        TIMEOUT if is_limit_of_time(code, message) => {
            "; max_execution_time of the user's settings profile ends what takes longer, and may not be \
             lifted: let the profile allow it, or begin anew with a smaller --segment-rows, if reading took so \
             long, or --part-bytes, if an insert did"
        }
        code if READ_ONLY.contains(&code) => {
            "; without ClickHouse Keeper (or ZooKeeper) a replica only reads: \
             SELECT database, table, zookeeper_exception FROM system.replicas WHERE is_readonly says of which \
             tables that is so, and why"
        }
        // That of the server, "(total)", is for all that it does.
        MEMORY if message.contains("Query memory limit") => {
            "; max_memory_usage of the user's settings profile gives a statement no more memory: raise it"
        }
        MEMORY if message.contains("User memory limit") => {
            "; max_memory_usage_for_user of the user's settings profile gives the user no more memory: \
             raise it"
        }
        _ => "",
    };
    advice.into()
}

fn describe_status(status: Option<u16>) -> String {
    status.map_or_else(String::new, |status| format!(" (HTTP status {status})"))
}

impl RequestError {
    /// Its kind, for statistics: `exception_241`, `network`, …
    pub fn kind(&self) -> Cow<'static, str> {
        match self {
            RequestError::Exception { code, .. } => format!("exception_{code}").into(),
            RequestError::Http { .. } => "http".into(),
            RequestError::Network(_) | RequestError::NotConnected(_) => "network".into(),
            RequestError::TimedOut { .. } => "timed_out".into(),
            RequestError::Held { .. } => "held_setting".into(),
            RequestError::Compressed => "compressed".into(),
            RequestError::Certificate(_) => "certificate".into(),
            RequestError::Unexpected(_) => "unexpected".into(),
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            RequestError::Exception { code, message } => {
                PASSING.contains(code)
                    && !message.contains(CONVERSION_FAILED)
                    && !is_limit_of_time(*code, message)
            }
            // Without a status (the official client does not tell it) it is most
            // likely a proxy's page that says that the server is away.
            RequestError::Http { status, .. } => {
                status.is_none_or(|status| matches!(status, 408 | 429 | 500 | 502..=504))
            }
            RequestError::Network(_)
            | RequestError::NotConnected(_)
            | RequestError::TimedOut { .. } => true,
            RequestError::Unexpected(_)
            | RequestError::Held { .. }
            | RequestError::Compressed
            | RequestError::Certificate(_) => false,
        }
    }

    /// Whether it is about the server that was asked, so that a replica of it may answer.
    pub(crate) fn is_of_server(&self) -> bool {
        match self {
            RequestError::Network(_)
            | RequestError::NotConnected(_)
            | RequestError::TimedOut { .. } => true,
            RequestError::Http { status, .. } => {
                status.is_none_or(|status| matches!(status, 502..=504))
            }
            _ => self.code().is_some_and(|code| OF_REPLICA.contains(&code)),
        }
    }

    /// Whether a limit of the user's settings profile is met, whatever was asked.
    pub(crate) fn is_held_limit(&self) -> bool {
        let code = self.code();
        LIMITS.iter().any(|limit| Some(limit.0) == code)
    }

    /// Whether it is likely to be met again in the same way: a limit for one statement.
    pub(crate) fn is_of_statement(&self) -> bool {
        matches!(self, RequestError::Exception { code: MEMORY, message }
            if message.contains("Query memory limit"))
    }

    /// Whether the server, or a proxy before it, would take less at once.
    pub fn is_too_large(&self) -> bool {
        match self {
            RequestError::Http { status, .. } => *status == Some(413),
            _ => self.is_lack_of_memory(),
        }
    }

    /// Whether the server lacks memory for what was sent.
    pub fn is_lack_of_memory(&self) -> bool {
        self.code()
            .is_some_and(|code| LACK_OF_MEMORY.contains(&code))
    }

    /// The number of the ClickHouse exception, if it was one.
    pub fn code(&self) -> Option<u32> {
        match self {
            RequestError::Exception { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// What a body says that came with a status other than 200, or an exception
    /// code in a header.
    pub(crate) fn from_response(status: Option<u16>, header_code: Option<u32>, body: &str) -> Self {
        let (body_code, message) = split_exception(body);
        match header_code.or(body_code) {
            Some(code) => RequestError::Exception { code, message },
            None => RequestError::Http { status, message },
        }
    }

    /// A transport error with all its causes: the first one alone says next to nothing.
    pub(crate) fn network(error: &(dyn StdError + 'static)) -> Self {
        let mut words = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !words.contains(&text) {
                words.push_str(": ");
                words.push_str(&text);
            }
            cause = inner.source();
        }
        if open_files::are_too_many(&words) {
            words.push_str(&format!("; {}", Advice::RaiseOpenFiles));
        }
        match words.split_once(CERTIFICATE) {
            Some((_, why)) => RequestError::Certificate(explained(why.trim_start_matches(": "))),
            None => RequestError::Network(words),
        }
    }
}

/// What rustls says where it does not accept a certificate.
const CERTIFICATE: &str = "invalid peer certificate";

/// What is wrong with a certificate, where rustls has only a word for it.
fn explained(why: &str) -> String {
    let meaning = [
        (
            "UnknownIssuer",
            "nobody whom this machine trusts has signed it",
        ),
        (
            "CaUsedAsEndEntity",
            "it is an authority's own certificate, and not one of a server",
        ),
        (
            "UnsupportedCertVersion",
            "it is of version 1, and not of version 3",
        ),
        ("BadEncoding", "it is damaged, or of version 1"),
    ];
    let meaning = meaning.iter().find(|meaning| why.contains(meaning.0));
    meaning.map_or_else(|| why.to_owned(), |meaning| meaning.1.to_owned())
}

impl From<clickhouse::error::Error> for RequestError {
    fn from(error: clickhouse::error::Error) -> Self {
        use clickhouse::error::Error;
        match &error {
            Error::BadResponse(body) => {
                // Without an exception the client's text is a body, or "503 Service Unavailable".
                let status = body
                    .split_once(' ')
                    .and_then(|(digits, _)| digits.parse().ok())
                    .filter(|status| (400..600).contains(status));
                RequestError::from_response(status, None, body)
            }
            Error::Decompression(cause) if cause.to_string().contains("`Content-Encoding`") => {
                RequestError::Compressed
            }
            Error::Network(cause) => RequestError::network(cause.as_ref()),
            // A response that was cut in the middle of a compressed frame, or an
            // exception that came in two chunks.
            Error::Decompression(cause) | Error::Other(cause) => {
                RequestError::network(cause.as_ref())
            }
            Error::TimedOut => RequestError::TimedOut {
                doing: "answer",
                limit: Duration::ZERO,
            },
            _ => RequestError::Unexpected(error.to_string()),
        }
    }
}

/// `Code: 60. DB::Exception: text (UNKNOWN_TABLE) (version 26.7.2.1)` → (60, `text (UNKNOWN_TABLE)`)
fn split_exception(body: &str) -> (Option<u32>, String) {
    let body = body.trim();
    let parsed = body.strip_prefix("Code: ").and_then(|rest| {
        let (code, rest) = rest.split_once('.')?;
        Some((code.parse().ok()?, rest.trim_start()))
    });
    let (code, mut text) = match parsed {
        Some((code, text)) => (Some(code), text),
        None => (None, body),
    };
    text = text.strip_prefix("DB::Exception: ").unwrap_or(text);
    if code.is_some() {
        // The server repeats the statement and its version, at any length.
        for end in [" (version ", ": In scope ", ": while executing"] {
            text = text.split_once(end).map_or(text, |(before, _)| before);
        }
    }
    let shortened: String = text.chars().take(MAX_MESSAGE).collect();
    let message = shortened.split_whitespace().collect::<Vec<_>>().join(" ");
    (code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_too_long_names_both_ways_to_do_less_at_once() {
        let advice = limit_named(TIMEOUT, "Timeout exceeded: elapsed 5 s, maximum: 4 s");
        for flag in ["begin anew", "--segment-rows", "--part-bytes"] {
            assert!(advice.contains(flag), "{advice}");
        }
    }

    #[test]
    fn an_exception_is_told_by_code_and_in_the_servers_words() {
        let body = "Code: 60. DB::Exception: Table a.b does not exist. (UNKNOWN_TABLE) (version 26.7.2.1 (official build))\n";
        let error = RequestError::from_response(Some(404), None, body);
        assert_eq!(
            error,
            RequestError::Exception {
                code: 60,
                message: "Table a.b does not exist. (UNKNOWN_TABLE)".into()
            }
        );
        assert!(!error.is_passing());
    }

    #[test]
    fn what_passes_by_itself_is_retried_and_what_does_not_is_not() {
        let exception = |code| RequestError::Exception {
            code,
            message: String::new(),
        };
        for code in [241, 252, 159, 202, 209] {
            assert!(exception(code).is_passing(), "{code}");
        }
        for code in [16, 47, 60, 81, 497, 516, 243] {
            assert!(!exception(code).is_passing(), "{code}");
        }
        let http = |status| RequestError::from_response(Some(status), None, "busy");
        assert!(http(503).is_passing() && http(429).is_passing());
        assert!(!http(404).is_passing() && !http(401).is_passing());
    }
}
