//! What can go wrong between this program and a ClickHouse server, and which errors are temporary.
//!
//! Retries are decided elsewhere: `backfill/pipeline/item.rs` reads a segment again, and
//! `backfill/work_attempts.rs` retries all other work.

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
    /// The error is not a ClickHouse exception: a proxy answered, or something else entirely.
    #[error("the answer{} does not come from ClickHouse: {message}", describe_status(*status))]
    Http {
        /// The HTTP status, if known.
        status: Option<u16>,
        /// The beginning of the body, or the status in words.
        message: String,
    },
    /// Connecting failed, or the connection broke.
    #[error("the connection to ClickHouse failed: {0}")]
    Network(String),
    /// Connecting for an insert failed, so nothing of it was sent.
    #[error("the connection to ClickHouse failed: {0}")]
    NotConnected(String),
    /// The server was silent for too long.
    #[error("ClickHouse did not {doing} within {} seconds", limit.as_secs())]
    TimedOut {
        /// What it should have done.
        doing: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// The user's profile pins a setting that the meaning of statements depends on to another value.
    #[error(
        "the user's settings profile pins {name} = {value}, which would make statements fail, or read \
         and write wrong data: remove the constraint{}",
        wanted.map(|wanted| format!(", or set it to '{wanted}' in the profile")).unwrap_or_default()
    )]
    Held {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// The required value, if there is only one.
        wanted: Option<&'static str>,
    },
    /// A proxy has compressed the answer. The client does not tell with what.
    #[error(
        "a proxy in front of ClickHouse compresses the answers (with gzip, for example) although nobody \
         asked for it: turn compression off for this address"
    )]
    Compressed,
    /// The server's certificate is not accepted.
    #[error("the server's certificate is not accepted: {0}")]
    Certificate(String),
    /// An answer that makes no sense here.
    #[error("{0}")]
    Unexpected(String),
}

/// How much of a server's message is shown, in characters.
const MAX_MESSAGE: usize = 600;

/// Temporary exceptions: the same request may succeed later.
/// Numbers and names from <https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp>.
const PASSING: &[u32] = &[
    3,    // UNEXPECTED_END_OF_FILE: the connection broke while the server read an insert
    32,   // ATTEMPT_TO_READ_AFTER_EOF: the same
    33,   // CANNOT_READ_ALL_DATA: the same
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

/// Exceptions after which another replica may succeed.
const OF_REPLICA: &[u32] = &[
    225, // NO_ZOOKEEPER: it has not reached Keeper since it was started
    236, // ABORTED: the server is shutting down
    242, // TABLE_IS_READ_ONLY: a replica that lost its Keeper session
    364, // UNEXPECTED_ZOOKEEPER_ERROR
    667, // NOT_INITIALIZED: it has not reached Keeper since it was started
    745, // SERVER_OVERLOADED
    999, // KEEPER_EXCEPTION
];

/// Exceptions that mean the server lacks memory for the request.
const LACK_OF_MEMORY: &[u32] = &[
    173, // CANNOT_ALLOCATE_MEMORY
    241, // MEMORY_LIMIT_EXCEEDED
];

/// Part of the message when a type does not fit, which ClickHouse reports with the code of a broken
/// connection.
const CONVERSION_FAILED: &str = "while converting column";

/// TIMEOUT_EXCEEDED
const TIMEOUT: u32 = 159;
/// NO_ZOOKEEPER, TABLE_IS_READ_ONLY and NOT_INITIALIZED: the replica cannot write without Keeper.
const READ_ONLY: &[u32] = &[225, 242, 667];
/// MEMORY_LIMIT_EXCEEDED
const MEMORY: u32 = 241;

/// Limits of the user's settings profile, by the exception raised when one is exceeded. We lift them all
/// if the profile allows it.
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

/// Whether the statement exceeded a time limit that the profile pins, so that a retry would exceed it
/// again. (We lift the limit if the profile allows it.)
fn is_limit_of_time(code: u32, message: &str) -> bool {
    code == TIMEOUT && message.contains("maximum")
}

/// Names the limit that was exceeded, and what to do.
fn limit_named(code: u32, message: &str) -> Cow<'static, str> {
    if let Some((_, name)) = LIMITS.iter().find(|limit| limit.0 == code) {
        return format!("; this is a limit of the user's settings profile ({name}): raise it")
            .into();
    }
    let advice = match code {
        TIMEOUT if is_limit_of_time(code, message) => {
            "; the user's settings profile pins max_execution_time: raise it, or start over (--restart) with a \
             smaller --segment-rows if a read took too long, or a smaller --part-bytes if an insert did"
        }
        code if READ_ONLY.contains(&code) => {
            "; a replica that has lost ClickHouse Keeper (or ZooKeeper) is read-only: \
             SELECT database, table, zookeeper_exception FROM system.replicas WHERE is_readonly shows which \
             tables are, and why"
        }
        // The server's own limit, "(total)", covers all its work and needs no advice here.
        MEMORY if message.contains("Query memory limit") => {
            "; the statement needs more memory than max_memory_usage allows: raise it in the user's settings \
             profile; with --engine clickhouse, lower --concurrency"
        }
        MEMORY if message.contains("User memory limit") => {
            "; the user needs more memory than max_memory_usage_for_user of the settings profile allows: \
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
            // Without a status (the official client does not pass it on) it is most likely a proxy's page
            // that says the server is down.
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

    /// Whether only this server is affected, so that another replica may answer.
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

    /// Whether a limit of the user's settings profile was exceeded.
    pub(crate) fn is_held_limit(&self) -> bool {
        let code = self.code();
        LIMITS.iter().any(|limit| Some(limit.0) == code)
    }

    /// Whether the same statement would probably fail again: it exceeded a memory limit per statement.
    pub(crate) fn is_of_statement(&self) -> bool {
        matches!(self, RequestError::Exception { code: MEMORY, message }
            if message.contains("Query memory limit"))
    }

    /// Whether the server, or a proxy in front of it, would accept a smaller request.
    pub fn is_too_large(&self) -> bool {
        match self {
            RequestError::Http { status, .. } => *status == Some(413),
            _ => self.is_lack_of_memory(),
        }
    }

    /// Whether the server lacks memory for the request.
    pub fn is_lack_of_memory(&self) -> bool {
        self.code()
            .is_some_and(|code| LACK_OF_MEMORY.contains(&code))
    }

    /// The code of the ClickHouse exception, if it is one.
    pub fn code(&self) -> Option<u32> {
        match self {
            RequestError::Exception { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The error in a response with a status other than 200, or with an exception code in a header.
    pub(crate) fn from_response(status: Option<u16>, header_code: Option<u32>, body: &str) -> Self {
        let (body_code, message) = split_exception(body);
        match header_code.or(body_code) {
            Some(code) => RequestError::Exception { code, message },
            None => RequestError::Http { status, message },
        }
    }

    /// A transport error with all its causes: the outermost alone says next to nothing.
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

/// What rustls says when it rejects a certificate.
const CERTIFICATE: &str = "invalid peer certificate";

/// Explains rustls's one-word reasons for rejecting a certificate.
fn explained(why: &str) -> String {
    let meaning = [
        (
            "UnknownIssuer",
            "no authority that this machine trusts has signed it",
        ),
        (
            "CaUsedAsEndEntity",
            "it is an authority's own certificate, not a server's",
        ),
        (
            "UnsupportedCertVersion",
            "it has version 1 instead of version 3",
        ),
        ("BadEncoding", "it is damaged or has version 1"),
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
            // A response cut off within a compressed frame, or an exception split over two chunks.
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
        // The server appends the statement and its version, at any length.
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
        for flag in ["--restart", "--segment-rows", "--part-bytes"] {
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
