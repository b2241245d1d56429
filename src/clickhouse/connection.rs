//! The connection to ClickHouse, to one server or to replicas: reads go through the official
//! client, inserts through the same HTTP stack (see `insert.rs` for why).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clickhouse::Compression as ClientCompression;
use clickhouse::query::{BytesCursor, Query};
use clickhouse::{Client, RowOwned, RowRead};
use hyper::header::AUTHORIZATION;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::error::RequestError;
use super::heard_out::HearingOut;
use super::options::{Compression, ConnectionOptions};
use super::retry::Retries;
use super::servers::{Connector, InTurn, Server, Servers, behind};
use super::settings::Settings;
use super::tls;
use url::Url;

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

/// Connects to ClickHouse. Cheap to clone; connections are pooled.
#[derive(Clone)]
pub struct Connection {
    servers: Servers,
    /// Which of them is asked, as long as it answers.
    place: usize,
    /// Whether all addresses are known to lead to one server.
    pub(super) is_one_server: Arc<AtomicBool>,
    pub(super) options: ConnectionOptions,
    pub(super) settings: Settings,
    retries: Option<Retries>,
}

impl Connection {
    /// Prepares a connection. Names are resolved, to tell the servers behind one apart; nothing is sent
    /// yet.
    ///
    /// # Errors
    /// A sentence where TLS cannot be set up.
    pub fn new(options: ConnectionOptions) -> Result<Self, String> {
        let mut servers = Vec::new();
        for url in &options.urls {
            match behind(url) {
                1 => servers.push(server(url, &options, None)?),
                several => {
                    for turn in 0..several {
                        servers.push(server(url, &options, Some(turn))?);
                    }
                }
            }
        }
        Ok(Self {
            servers: Servers::new(servers)?,
            place: 0,
            is_one_server: Arc::default(),
            options,
            settings: Settings::default(),
            retries: None,
        })
    }

    /// The same connection, which asks another server first: the one at this place, counted round and
    /// round.
    pub(crate) fn at(&self, place: usize) -> Self {
        Self {
            place,
            ..self.clone()
        }
    }

    /// Connections to each server, of which none asks another one in its place: what a server still does
    /// for us, only that one knows. To one, where all addresses lead to it.
    pub(crate) fn to_each_server(&self) -> Vec<Self> {
        if self.is_one_server.load(Ordering::Relaxed) {
            return vec![self.clone()];
        }
        let places = 0..self.places();
        places.map(|place| self.only(place)).collect()
    }

    /// The same connection to the server at this place alone.
    pub(super) fn only(&self, place: usize) -> Self {
        Self {
            servers: self.servers.only(place),
            ..self.clone()
        }
    }

    /// How many servers the addresses lead to.
    pub(crate) fn places(&self) -> usize {
        self.servers.count()
    }

    /// The server that is asked now.
    pub(super) fn server(&self) -> Arc<Server> {
        self.servers.choose(self.place)
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

    /// Asks until there is an answer, or an error for which there is no use in asking again. What a server
    /// does not answer, another one is asked at once.
    async fn ask<T, A>(&self, question: impl Fn(Arc<Server>) -> A) -> Result<T, RequestError>
    where
        A: Future<Output = Result<T, RequestError>>,
    {
        let mut attempts = self.retries.as_ref().map(Retries::attempts);
        let mut others = self.places() - 1;
        loop {
            let server = self.server();
            let error = match question(Arc::clone(&server)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            server.met(&error);
            if error.is_of_server() && others > 0 {
                others -= 1;
                continue;
            }
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

    /// The addresses without credentials, for messages.
    pub fn address(&self) -> String {
        self.options.addresses()
    }

    /// The address that is asked now, without credentials, for messages.
    pub(crate) fn address_in_use(&self) -> String {
        self.server().url.to_string()
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
        self.ask(|server| {
            let fetch = self.query(&server, sql, settings).fetch_all::<T>();
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

    fn query(&self, server: &Server, sql: &str, settings: &[(&str, String)]) -> Query {
        let of_all = self.settings.all().iter();
        let query = of_all.fold(server.client.query_raw(sql), |query, &(name, value)| {
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
        let question = |server: Arc<Server>| async move {
            let query = settings
                .iter()
                .fold(server.client.query_raw(sql), |query, &(name, value)| {
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
        self.ask(|server| {
            let stream = self.stream_from(server, sql, &[]);
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
        self.stream_from(self.server(), sql, settings)
    }

    fn stream_from(
        &self,
        server: Arc<Server>,
        sql: &str,
        settings: &[(&str, String)],
    ) -> Result<NativeStream, RequestError> {
        Ok(NativeStream {
            cursor: self.query(&server, sql, settings).fetch_bytes("Native")?,
            silence: READ_TIMEOUT,
            server,
        })
    }
}

/// The bytes of a result, as they arrive.
pub struct NativeStream {
    cursor: BytesCursor,
    /// How long the server may be silent.
    silence: Duration,
    /// The one that was asked.
    server: Arc<Server>,
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
        let chunk = match tokio::time::timeout(self.silence, self.cursor.next()).await {
            Ok(chunk) => chunk.map_err(RequestError::from),
            Err(_) => Err(RequestError::TimedOut {
                doing: "send the rows that were asked for",
                limit: self.silence,
            }),
        };
        chunk.inspect_err(|error| self.server.met(error))
    }
}

/// One server: the one of an address, or, of a name that stands for several, the one whose turn it is.
fn server(url: &Url, options: &ConnectionOptions, turn: Option<usize>) -> Result<Server, String> {
    let mut tcp = HttpConnector::new_with_resolver(InTurn::new(turn));
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // By default the kernel takes tens of megabytes of a response that nobody reads,
    // and says nothing to the server for a long time when little of it is read.
    tcp.set_recv_buffer_size(Some(RECEIVE_BUFFER));
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    let tls = tls::client_config(url.scheme() == "https", &options.trust)?;
    let connector: Connector = hyper_rustls::HttpsConnectorBuilder::new()
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
        .with_url(url.as_str())
        .with_header(AUTHORIZATION.as_str(), options.authorization())
        .with_product_info(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
        .with_compression(match options.compression {
            Compression::None => ClientCompression::None,
            Compression::Lz4 => ClientCompression::Lz4,
        });
    let http = insert_builder.build(HearingOut(connector));
    Ok(Server::new(url.clone(), client, http))
}
