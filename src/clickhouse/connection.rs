//! The connection to ClickHouse, to one server or to replicas. Reads use the official client,
//! inserts its HTTP stack directly (`insert.rs` says why).

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

/// Bytes of a response that the kernel may buffer.
const RECEIVE_BUFFER: usize = 2 * 1024 * 1024;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// ClickHouse closes idle connections after 3 s unless told otherwise; staying
/// below that avoids sending a request into a connection that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the server may take to answer a query that reads no data.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the server may be silent while it reads data.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// Connects to ClickHouse. Cheap to clone; connections are pooled.
#[derive(Clone)]
pub struct Connection {
    servers: Servers,
    /// The index of the preferred server.
    place: usize,
    /// Whether all addresses are known to lead to one server.
    pub(super) is_one_server: Arc<AtomicBool>,
    pub(super) options: ConnectionOptions,
    pub(super) settings: Settings,
    retries: Option<Retries>,
}

impl Connection {
    /// Prepares a connection: resolves names, to find the servers behind each, but sends nothing yet.
    ///
    /// # Errors
    /// A sentence if TLS cannot be set up.
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

    /// The same connection, but it prefers the server at this index (modulo their number).
    pub(crate) fn at(&self, place: usize) -> Self {
        Self {
            place,
            ..self.clone()
        }
    }

    /// One connection per server, without failover: only the server itself knows which of our statements it
    /// is still running. A single connection if all addresses lead to one server.
    pub(crate) fn to_each_server(&self) -> Vec<Self> {
        if self.is_one_server.load(Ordering::Relaxed) {
            return vec![self.clone()];
        }
        let places = 0..self.places();
        places.map(|place| self.only(place)).collect()
    }

    /// The same connection, but only to the server at this index.
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

    /// The server for the next request.
    pub(super) fn server(&self) -> Arc<Server> {
        self.servers.choose(self.place)
    }

    /// The same connection, but it retries queries with small results. Streams and inserts are not
    /// retried here.
    pub fn with_retries(&self, retries: &Retries) -> Self {
        Self {
            retries: Some(retries.clone()),
            ..self.clone()
        }
    }

    /// The same connection, without retries.
    pub(crate) fn without_retries(&self) -> Self {
        Self {
            retries: None,
            ..self.clone()
        }
    }

    /// Asks until there is an answer, or an error that a retry would not help. If a server does not
    /// answer, asks another one at once.
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

    /// The address for the next request, without credentials, for messages.
    pub(crate) fn address_in_use(&self) -> String {
        self.server().url.to_string()
    }

    /// Whether transfers are compressed.
    pub fn compression(&self) -> Compression {
        self.options.compression
    }

    /// All rows of a query with a small result that the server answers at once.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn rows<T>(&self, sql: &str) -> Result<Vec<T>, RequestError>
    where
        T: RowOwned + RowRead,
    {
        self.rows_within(sql, ASK_TIMEOUT).await
    }

    /// All rows of a query with a small result that may take up to `limit`.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn rows_within<T>(&self, sql: &str, limit: Duration) -> Result<Vec<T>, RequestError>
    where
        T: RowOwned + RowRead,
    {
        self.rows_with(sql, &[], limit).await
    }

    /// All rows of a query with a small result, its own settings, and up to `limit` to answer.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
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

    /// The result of a small statement as tab-separated text. Sends these settings and no others.
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

    /// Runs a query and ignores its result.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
    pub async fn check(&self, sql: &str) -> Result<(), RequestError> {
        self.check_within(sql, READ_TIMEOUT).await
    }

    /// Runs a statement during which the server may be silent for up to `silence`; ignores the result.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the query or cannot be reached.
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

    /// Runs a statement that changes something, with its own settings and without retries; the server
    /// may be silent for up to `silence`.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the statement or the connection fails; the server may have
    /// carried it out all the same.
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
    /// [`RequestError::Unexpected`] if the request cannot be built.
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

/// The bytes of a result as they arrive.
pub struct NativeStream {
    cursor: BytesCursor,
    /// How long the server may be silent.
    silence: Duration,
    /// The server that sends it.
    server: Arc<Server>,
}

impl NativeStream {
    /// Allows the server to be silent for this long, since it may have to read a whole table before
    /// the first row.
    #[must_use]
    pub fn with_silence(self, silence: Duration) -> Self {
        Self { silence, ..self }
    }

    /// The next bytes, or `None` at the end of a complete response.
    ///
    /// # Errors
    /// [`RequestError`] if the response breaks off, including an exception after status 200.
    pub async fn next_chunk(&mut self) -> Result<Option<bytes::Bytes>, RequestError> {
        let chunk = match tokio::time::timeout(self.silence, self.cursor.next()).await {
            Ok(chunk) => chunk.map_err(RequestError::from),
            Err(_) => Err(RequestError::TimedOut {
                doing: "send the requested rows",
                limit: self.silence,
            }),
        };
        chunk.inspect_err(|error| self.server.met(error))
    }
}

/// The server of an address; of a name with several servers, the one with this turn.
fn server(url: &Url, options: &ConnectionOptions, turn: Option<usize>) -> Result<Server, String> {
    let mut tcp = HttpConnector::new_with_resolver(InTurn::new(turn));
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // By default the kernel buffers tens of megabytes of a response that nobody reads, and is slow to
    // tell the server to go on when we read slowly.
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
    // Each insert gets a new connection. If a reused one turned out to be closed, nobody would know
    // what had arrived, and the segment would have to be read again.
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
