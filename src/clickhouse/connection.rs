//! The connection to one ClickHouse server: reads go through the official
//! client, inserts through the same HTTP stack (see `insert.rs` for why).

use std::time::Duration;

use clickhouse::Compression as ClientCompression;
use clickhouse::query::{BytesCursor, Query};
use clickhouse::{Client, RowOwned, RowRead};
use hyper::header::AUTHORIZATION;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::retry::Retries;

use super::body::StreamedBody;
use super::error::RequestError;
use super::heard_out::HearingOut;
use super::options::{Compression, ConnectionOptions};
use super::settings::Settings;
use super::tls;

/// Bytes of a response that the kernel may hold.
const RECEIVE_BUFFER: usize = 2 * 1024 * 1024;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// ClickHouse closes idle connections after 3 s unless told otherwise; staying
/// below that avoids sending a request into a connection that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the server may take to answer what it knows without reading data.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the server may be silent while it reads for us.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// Connects to one ClickHouse server. Cheap to clone; connections are pooled.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    /// For inserts.
    pub(super) http: HttpClient<HearingOut<HttpsConnector<HttpConnector>>, StreamedBody>,
    pub(super) options: ConnectionOptions,
    pub(super) settings: Settings,
    retries: Option<Retries>,
}

impl Connection {
    /// Prepares a connection; nothing is sent yet.
    ///
    /// # Errors
    /// A sentence where TLS cannot be set up.
    pub fn new(options: ConnectionOptions) -> Result<Self, String> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        // By default the kernel takes tens of megabytes of a response that nobody reads,
        // and says nothing to the server for a long time when little of it is read.
        tcp.set_recv_buffer_size(Some(RECEIVE_BUFFER));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let tls = tls::client_config(options.url.scheme() == "https", &options.trust)?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let mut builder = HttpClient::builder(TokioExecutor::new());
        builder
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(hyper_util::rt::TokioTimer::new());
        // Each insert has a connection of its own: where an older one turns out to be closed, nobody
        // knows what has arrived, and a segment would be read again.
        let mut insert_builder = builder.clone();
        insert_builder.pool_max_idle_per_host(0);
        let client = Client::with_http_client(builder.build(connector.clone()))
            .with_url(options.url.as_str())
            .with_header(AUTHORIZATION.as_str(), options.authorization())
            .with_product_info(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            .with_compression(match options.compression {
                Compression::None => ClientCompression::None,
                Compression::Lz4 => ClientCompression::Lz4,
            });
        Ok(Self {
            client,
            http: insert_builder.build(HearingOut(connector)),
            options,
            settings: Settings::default(),
            retries: None,
        })
    }

    /// The same connection, but questions with small answers are asked again
    /// where that may help. What streams or inserts is not affected.
    pub fn with_retries(&self, retries: &Retries) -> Self {
        Self {
            retries: Some(retries.clone()),
            ..self.clone()
        }
    }

    /// The same connection, of which nothing is asked again.
    pub(crate) fn without_retries(&self) -> Self {
        Self {
            retries: None,
            ..self.clone()
        }
    }

    /// Asks until there is an answer, or an error for which there is no use in asking again.
    async fn ask<T, A>(&self, question: impl Fn() -> A) -> Result<T, RequestError>
    where
        A: Future<Output = Result<T, RequestError>>,
    {
        let mut attempts = self.retries.as_ref().map(Retries::attempts);
        loop {
            let error = match question().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let again = match &mut attempts {
                Some(attempts) => {
                    attempts
                        .again(error.is_passing(), &error.kind(), &error)
                        .await
                }
                None => false,
            };
            if !again {
                return Err(error);
            }
        }
    }

    /// The address without credentials, for messages.
    pub fn address(&self) -> &str {
        self.options.url.as_str()
    }

    /// Whether what travels is compressed.
    pub fn compression(&self) -> Compression {
        self.options.compression
    }

    /// All rows of a small result of a query that the server answers at once.
    ///
    /// # Errors
    /// Whatever the request met.
    pub async fn rows<T>(&self, sql: &str) -> Result<Vec<T>, RequestError>
    where
        T: RowOwned + RowRead,
    {
        self.rows_within(sql, ASK_TIMEOUT).await
    }

    /// All rows of a small result of a query that may take up to `limit`.
    ///
    /// # Errors
    /// Whatever the request met.
    pub async fn rows_within<T>(&self, sql: &str, limit: Duration) -> Result<Vec<T>, RequestError>
    where
        T: RowOwned + RowRead,
    {
        self.rows_with(sql, &[], limit).await
    }

    /// All rows of a small result of a query that has settings of its own and may
    /// take up to `limit`.
    ///
    /// # Errors
    /// Whatever the request met.
    pub async fn rows_with<T>(
        &self,
        sql: &str,
        settings: &[(&str, String)],
        limit: Duration,
    ) -> Result<Vec<T>, RequestError>
    where
        T: RowOwned + RowRead,
    {
        self.ask(|| {
            let fetch = self.query(sql, settings).fetch_all::<T>();
            async move {
                match tokio::time::timeout(limit, fetch).await {
                    Ok(rows) => Ok(rows?),
                    Err(_) => Err(RequestError::TimedOut {
                        doing: "answer",
                        limit,
                    }),
                }
            }
        })
        .await
    }

    fn query(&self, sql: &str, settings: &[(&str, String)]) -> Query {
        let of_all = self.settings.all().iter();
        let query = of_all.fold(self.client.query_raw(sql), |query, &(name, value)| {
            query.with_setting(name, value)
        });
        let settings = settings.iter();
        settings.fold(query, |query, (name, value)| {
            query.with_setting(*name, value)
        })
    }

    /// The text of a small answer, its columns separated by tabs, of a statement with just these
    /// settings.
    pub(super) async fn text(
        &self,
        sql: &str,
        settings: &[(&str, &str)],
        limit: Duration,
    ) -> Result<String, RequestError> {
        let question = || async {
            let query = settings
                .iter()
                .fold(self.client.query_raw(sql), |query, &(name, value)| {
                    query.with_setting(name, value)
                });
            let answer = async {
                let mut cursor = query.fetch_bytes("TabSeparatedRaw")?;
                let mut text = Vec::new();
                while let Some(chunk) = cursor.next().await? {
                    text.extend_from_slice(&chunk);
                }
                Ok(String::from_utf8_lossy(&text).into_owned())
            };
            match tokio::time::timeout(limit, answer).await {
                Ok(text) => text,
                Err(_) => Err(RequestError::TimedOut {
                    doing: "answer",
                    limit,
                }),
            }
        };
        self.ask(question).await
    }

    /// Runs a query and ignores what it yields.
    ///
    /// # Errors
    /// Whatever the request met.
    pub async fn check(&self, sql: &str) -> Result<(), RequestError> {
        self.check_within(sql, READ_TIMEOUT).await
    }

    /// Runs a statement that may be silent for up to `silence`, and ignores what it yields.
    ///
    /// # Errors
    /// Whatever the request met.
    pub async fn check_within(&self, sql: &str, silence: Duration) -> Result<(), RequestError> {
        self.ask(|| {
            let stream = self.stream(sql, &[]);
            async move {
                let mut stream = stream?.with_silence(silence);
                while stream.next_chunk().await?.is_some() {}
                Ok(())
            }
        })
        .await
    }

    /// Runs a statement that changes something, once, with settings of its own; the server may be
    /// silent for up to `silence`.
    ///
    /// # Errors
    /// Whatever the request met; the statement may have been carried out all the same.
    pub async fn execute(
        &self,
        sql: &str,
        settings: &[(&str, String)],
        silence: Duration,
    ) -> Result<(), RequestError> {
        let mut stream = self.stream(sql, settings)?.with_silence(silence);
        while stream.next_chunk().await?.is_some() {}
        Ok(())
    }

    /// Starts a query whose result is streamed in `Native` format.
    ///
    /// # Errors
    /// [`RequestError::Unexpected`] where the request cannot even be formed.
    pub(super) fn stream(
        &self,
        sql: &str,
        settings: &[(&str, String)],
    ) -> Result<NativeStream, RequestError> {
        Ok(NativeStream {
            cursor: self.query(sql, settings).fetch_bytes("Native")?,
            silence: READ_TIMEOUT,
        })
    }
}

/// The bytes of a result, as they arrive.
pub struct NativeStream {
    cursor: BytesCursor,
    /// How long the server may be silent.
    silence: Duration,
}

impl NativeStream {
    /// Lets the server be silent for so long: it may have to read a whole table before
    /// it has the first row.
    #[must_use]
    pub fn with_silence(self, silence: Duration) -> Self {
        Self { silence, ..self }
    }

    /// The next bytes, or `None` at the end of a complete response.
    ///
    /// # Errors
    /// Whatever ended the response before its end, an exception after a
    /// status of 200 included.
    pub async fn next_chunk(&mut self) -> Result<Option<bytes::Bytes>, RequestError> {
        match tokio::time::timeout(self.silence, self.cursor.next()).await {
            Ok(chunk) => Ok(chunk?),
            Err(_) => Err(RequestError::TimedOut {
                doing: "send the rows that were asked for",
                limit: self.silence,
            }),
        }
    }
}
