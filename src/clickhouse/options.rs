//! Address, user, compression and TLS of the connection to ClickHouse.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use url::Url;

use super::tls::Trust;

/// A password. Never shown: `Debug` hides it and there is no `Display`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Wraps a password.
    pub fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }

    /// The password itself. Only for the header of a request.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Whether transfers are compressed with LZ4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Uncompressed: half the processor time, five times the bytes.
    None,
    /// LZ4 in both directions.
    Lz4,
}

/// How to connect to ClickHouse.
#[derive(Debug, Clone)]
pub struct ConnectionOptions {
    /// HTTP or HTTPS addresses of one server, or of its replicas; at least one.
    pub urls: Vec<Url>,
    /// User name.
    pub user: String,
    /// Password.
    pub password: Password,
    /// Whether to compress.
    pub compression: Compression,
    /// Which server certificates to accept.
    pub trust: Trust,
    /// Whether the server runs our statements at a lower priority than others.
    pub gives_way: bool,
}

impl ConnectionOptions {
    /// The addresses, for messages.
    pub(crate) fn addresses(&self) -> String {
        let urls: Vec<&str> = self.urls.iter().map(Url::as_str).collect();
        urls.join(", ")
    }

    /// The `Authorization` header. ClickHouse's own headers cannot hold a password that is not ASCII.
    pub(super) fn authorization(&self) -> String {
        let credentials = format!("{}:{}", self.user, self.password.reveal());
        format!("Basic {}", BASE64_STANDARD.encode(credentials))
    }
}
