//! Reads single settings from the command line or the environment and checks their range.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use url::{Host, Url};

use crate::cli::Environment;
use crate::clickhouse::{Compression, ConnectionOptions, Password, Trust};
use crate::error::Error;
use crate::memory::ByteSize;
use crate::progress::log::LogFormat;

/// Looks settings up by their variable, unless the command line has them.
pub(super) struct Settings<'a> {
    pub(super) environment: &'a Environment,
}

impl Settings<'_> {
    pub(super) fn text(&self, argument: Option<String>, variable: &str) -> Option<String> {
        argument.or_else(|| self.environment.get(variable).map(str::to_owned))
    }

    pub(super) fn number<T>(
        &self,
        argument: Option<String>,
        flag: &str,
        variable: &str,
        default: T,
        range: RangeInclusive<T>,
    ) -> Result<T, Error>
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        let number = self.number_if_given(argument, flag, variable, range)?;
        Ok(number.unwrap_or(default))
    }

    /// A number that has no default of its own.
    pub(super) fn number_if_given<T>(
        &self,
        argument: Option<String>,
        flag: &str,
        variable: &str,
        range: RangeInclusive<T>,
    ) -> Result<Option<T>, Error>
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        let (name, text) = match (argument, self.environment.get(variable)) {
            (Some(text), _) => (flag, text),
            (None, Some(text)) => (variable, text.to_owned()),
            (None, None) => return Ok(None),
        };
        whole(name, &text, range).map(Some)
    }

    /// A number of bytes. Errors name the flag, even if the variable was set.
    pub(super) fn size(
        &self,
        argument: Option<String>,
        flag: &str,
        variable: &str,
        default: ByteSize,
    ) -> Result<ByteSize, Error> {
        let text = self.text(argument, variable);
        let size = text.map_or(Ok(default), |text| text.parse());
        size.map_err(|error| Error::configuration(format!("{flag}: {error}")))
    }

    pub(super) fn log_format(&self, argument: Option<String>) -> Result<LogFormat, Error> {
        match self.text(argument, "LOG_FORMAT").as_deref() {
            None | Some("text") => Ok(LogFormat::Text),
            Some("json") => Ok(LogFormat::Json),
            Some(other) => Err(Error::configuration(format!(
                "--log-format is '{other}': use text or json"
            ))),
        }
    }

    /// The address at which to serve metrics.
    pub(super) fn address(&self, argument: Option<String>) -> Result<Option<SocketAddr>, Error> {
        let text = self.text(argument, "METRICS_LISTEN");
        let address = text.map(|text| {
            text.parse().map_err(|_| {
                Error::configuration(format!(
                    "--metrics-listen is '{text}': use an IP address of this machine with a port, for \
                     example 127.0.0.1:9464"
                ))
            })
        });
        address.transpose()
    }

    pub(super) fn connection(
        &self,
        compression: Option<&str>,
        accept_invalid_certificates: bool,
    ) -> Result<ConnectionOptions, Error> {
        let text = self
            .text(None, "CLICKHOUSE_URL")
            .unwrap_or_else(|| "http://localhost:8123".to_owned());
        let urls = text.split(',').map(|url| parse_url(url.trim()));
        let urls: Vec<Url> = urls
            .collect::<Result<_, _>>()
            .map_err(Error::configuration)?;
        let compression = match compression {
            None | Some("auto") if urls.iter().all(is_loopback) => Compression::None,
            None | Some("auto" | "lz4") => Compression::Lz4,
            Some("none") => Compression::None,
            Some(other) => {
                return Err(Error::configuration(format!(
                    "--compression is '{other}': use auto, lz4 or none"
                )));
            }
        };
        let user = self
            .text(None, "CLICKHOUSE_USER")
            .unwrap_or_else(|| "default".to_owned());
        if user.contains(':') {
            return Err(Error::configuration(
                "CLICKHOUSE_USER contains a colon, which HTTP authentication does not allow: \
                 name a user without one",
            ));
        }
        let authorities = self.environment.get("SSL_CERT_FILE");
        let trust = match (accept_invalid_certificates, authorities) {
            (true, _) => Trust::Anybody,
            (false, Some(file)) => Trust::File(file.into()),
            (false, None) => Trust::Machine,
        };
        Ok(ConnectionOptions {
            urls,
            user,
            password: self.password()?,
            compression,
            trust,
            gives_way: true,
        })
    }

    fn password(&self) -> Result<Password, Error> {
        // A password may begin or end with a space.
        let variable = self.environment.get_untrimmed("CLICKHOUSE_PASSWORD");
        match (variable, self.environment.get("CLICKHOUSE_PASSWORD_FILE")) {
            (Some(password), _) if !password.is_empty() => Ok(Password::new(password)),
            (_, Some(file)) => {
                let content = std::fs::read_to_string(file).map_err(|error| {
                    Error::configuration(format!(
                        "cannot read the password file {file} (CLICKHOUSE_PASSWORD_FILE): {error}"
                    ))
                })?;
                Ok(Password::new(content.trim_end_matches(['\r', '\n'])))
            }
            _ => Ok(Password::default()),
        }
    }
}

/// Parses a whole number in a range.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) with the name of the setting and the range.
pub(super) fn whole<T>(name: &str, text: &str, range: RangeInclusive<T>) -> Result<T, Error>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        Error::configuration(format!(
            "{name} is '{text}': use a whole number from {} to {}",
            range.start(),
            range.end()
        ))
    })
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| {
        format!(
            "CLICKHOUSE_URL is not an address ({error}): write for example http://localhost:8123, and \
             separate several replicas with commas"
        )
    })?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!(
            "CLICKHOUSE_URL begins with '{}:': use the address of ClickHouse's HTTP interface, for \
             example http://localhost:8123",
            url.scheme()
        ));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(
            "CLICKHOUSE_URL must not contain credentials or parameters: use CLICKHOUSE_USER, \
                    CLICKHOUSE_PASSWORD and CLICKHOUSE_DB"
                .to_owned(),
        );
    }
    Ok(url)
}

/// Whether an address leads to this machine by its own name.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}
