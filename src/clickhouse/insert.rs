//! An insert whose rows are sent while they are being made.
//!
//! The official client does not say how many rows an insert wrote (it drops the
//! `X-ClickHouse-Summary` header). But "rows written equal rows sent" is our guard
//! against silently lost rows, so inserts use the HTTP client underneath.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_ENCODING, HeaderMap, USER_AGENT};
use hyper::{Request, Response};
use tokio::task::JoinHandle;
use url::{Url, UrlQuery, form_urlencoded};

use super::body::{Feed, StreamedBody, body, whole};
use super::connection::Connection;
use super::error::RequestError;
use super::options::Compression;
use super::servers::Server;
use super::settings::{MAX_QUERY_SIZE, QUERY_SIZE_OF_INSERTS};

/// Bytes of an answer to read at most; an exception is far shorter.
const MAX_ANSWER: usize = 64 * 1024;

/// An insert without its rows.
#[derive(Debug, Clone)]
pub struct InsertRequest {
    /// `INSERT INTO … FORMAT Native`
    pub sql: String,
    /// Its own settings, from `OF_INSERTS` in `settings.rs`.
    pub settings: Vec<(&'static str, String)>,
    /// Query id in `system.processes`, to find the insert after its client is gone.
    pub query_id: String,
    /// Whether the target has materialized views; the server counts the rows they write too.
    pub has_views: bool,
}

/// An insert whose rows the server itself selects.
#[derive(Debug, Clone)]
pub struct InsertSelect {
    /// `INSERT INTO … SELECT …`
    pub sql: String,
    /// Settings of its SELECT, from `OF_STATEMENTS` in `settings.rs`.
    pub settings: Vec<(&'static str, String)>,
    /// Settings of the insert, from `OF_INSERTS` in `settings.rs`.
    pub insert_settings: Vec<(&'static str, String)>,
    /// Query id in `system.processes`, to find the insert after its client is gone.
    pub query_id: String,
}

/// An insert under way. Dropping it before the answer aborts it; the server keeps the rows it has
/// written by then.
pub struct OpenInsert {
    feed: Feed,
    /// Until it is taken.
    answer: Option<JoinHandle<Result<HeaderMap, RequestError>>>,
    rows: u64,
    has_views: bool,
}

impl Connection {
    /// Starts an insert.
    ///
    /// # Errors
    /// [`RequestError::Unexpected`] if the request cannot be built.
    pub fn begin_insert(&self, insert: &InsertRequest) -> Result<OpenInsert, RequestError> {
        let (feed, body) = body();
        let server = self.server();
        let request = self.insert_request(&server, insert, body)?;
        let answer = tokio::spawn(async move { answer(&server, request).await });
        Ok(OpenInsert {
            feed,
            answer: Some(answer),
            rows: 0,
            has_views: insert.has_views,
        })
    }

    /// Has the server insert rows that it selects itself. Dropping the future does not end the insert.
    /// Returns the number of rows written, those of views included.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the insert or the connection fails.
    pub async fn insert_select(&self, insert: &InsertSelect) -> Result<u64, RequestError> {
        let server = self.server();
        let request = self.insert_select_request(&server, insert)?;
        let headers = answer(&server, request).await?;
        written_rows(&headers).ok_or_else(no_summary)
    }

    fn insert_select_request(
        &self,
        server: &Server,
        insert: &InsertSelect,
    ) -> Result<Request<StreamedBody>, RequestError> {
        let mut url = server.url.clone();
        let mut pairs = url.query_pairs_mut();
        pairs.clear();
        pairs.extend_pairs(self.settings.all().iter().copied());
        pairs.extend_pairs(insert.settings.iter());
        let settings = insert.insert_settings.iter();
        pairs.extend_pairs(settings.filter(|setting| self.settings.may_insert_with(setting.0)));
        end_of_pairs(&mut pairs, &insert.query_id);
        drop(pairs);
        // The statement may be too long for a request's first line.
        let body = whole(Bytes::from(insert.sql.clone()));
        self.request(&url, Compression::None, body)
    }

    fn insert_request(
        &self,
        server: &Server,
        insert: &InsertRequest,
        body: StreamedBody,
    ) -> Result<Request<StreamedBody>, RequestError> {
        let mut url = server.url.clone();
        let mut pairs = url.query_pairs_mut();
        pairs.clear();
        pairs.append_pair("query", &insert.sql);
        let of_all = self.settings.all().iter().copied();
        pairs.extend_pairs(of_all.map(|setting| match setting.0 {
            MAX_QUERY_SIZE if self.settings.may_insert_with(MAX_QUERY_SIZE) => {
                (MAX_QUERY_SIZE, QUERY_SIZE_OF_INSERTS)
            }
            _ => setting,
        }));
        let settings = insert.settings.iter();
        pairs.extend_pairs(settings.filter(|setting| self.settings.may_insert_with(setting.0)));
        end_of_pairs(&mut pairs, &insert.query_id);
        drop(pairs);
        self.request(&url, self.options.compression, body)
    }

    fn request(
        &self,
        url: &Url,
        compression: Compression,
        body: StreamedBody,
    ) -> Result<Request<StreamedBody>, RequestError> {
        let mut request = Request::post(url.as_str())
            .header(
                USER_AGENT,
                concat!("events-backfill/", env!("CARGO_PKG_VERSION")),
            )
            .header(AUTHORIZATION, self.options.authorization())
            // Otherwise the server reads the whole body before it reports that the insert has failed
            // (measured on 26.7), which may take as long as a segment.
            .header(CONNECTION, "close");
        if compression == Compression::Lz4 {
            request = request.header(CONTENT_ENCODING, "lz4");
        }
        request.body(body).map_err(|error| {
            RequestError::Unexpected(format!("the insert's request cannot be built: {error}"))
        })
    }
}

/// Sends an insert and waits for its answer.
async fn answer(
    server: &Server,
    request: Request<StreamedBody>,
) -> Result<HeaderMap, RequestError> {
    let answer = match server.http.request(request).await {
        Ok(response) => read_answer(response).await,
        Err(error) => Err(match (error.is_connect(), RequestError::network(&error)) {
            (true, RequestError::Network(words)) => RequestError::NotConnected(words),
            (_, error) => error,
        }),
    };
    answer.inspect_err(|error| server.met(error))
}

fn end_of_pairs(pairs: &mut form_urlencoded::Serializer<'_, UrlQuery<'_>>, query_id: &str) {
    pairs.append_pair("query_id", query_id);
    // The number of written rows is in a header, so the server must finish before it sends headers.
    pairs.append_pair("wait_end_of_query", "1");
}

impl OpenInsert {
    /// Adds a block: its bytes in `Native` format, compressed as the connection's options say, the
    /// memory that they occupy, and its rows. Does not wait.
    pub fn push(&mut self, pieces: Vec<Bytes>, held_bytes: usize, rows: u64) {
        self.rows += rows;
        self.feed.push(pieces, held_bytes);
    }

    /// Bytes of memory that unsent blocks occupy.
    pub fn held_bytes(&self) -> usize {
        self.feed.backlog().bytes()
    }

    /// Rows of all blocks.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Waits until unsent blocks occupy at most `bytes`. Cancel-safe: it may be called again.
    ///
    /// # Errors
    /// The server's answer if it comes now, which is too early.
    pub async fn at_most(&mut self, held_bytes: usize) -> Result<(), RequestError> {
        let Some(answer) = &mut self.answer else {
            return Err(already_answered());
        };
        let answered = tokio::select! {
            // Check for a failed insert first, even if there is room.
            biased;
            answered = answer => answered,
            () = self.feed.backlog().at_most(held_bytes) => return Ok(()),
        };
        self.answer = None;
        joined(answered)?;
        Err(RequestError::Unexpected(
            "ClickHouse answered an insert before it had received all rows".to_owned(),
        ))
    }

    /// Ends the body and waits for the answer. Cancel-safe: it may be called again.
    ///
    /// # Errors
    /// [`RequestError`] if the server rejects the insert or the connection fails;
    /// [`RequestError::Unexpected`] if the server wrote fewer rows than we sent.
    pub async fn finish(&mut self) -> Result<(), RequestError> {
        self.feed.end();
        let Some(answer) = &mut self.answer else {
            return Err(already_answered());
        };
        let answered = answer.await;
        self.answer = None;
        check_written_rows(self.rows, self.has_views, &joined(answered)?)
    }

    /// Aborts the insert and waits until its memory is released.
    pub async fn abort(mut self) {
        if let Some(answer) = self.answer.take() {
            answer.abort();
            let _ = answer.await;
        }
    }
}

impl Drop for OpenInsert {
    fn drop(&mut self) {
        if let Some(answer) = &self.answer {
            answer.abort();
        }
    }
}

fn joined(
    answered: Result<Result<HeaderMap, RequestError>, tokio::task::JoinError>,
) -> Result<HeaderMap, RequestError> {
    let ended = |error| {
        Err(RequestError::Unexpected(format!(
            "the task of an insert failed: {error}"
        )))
    };
    answered.unwrap_or_else(ended)
}

fn already_answered() -> RequestError {
    RequestError::Unexpected("an insert was used after its answer".to_owned())
}

fn check_written_rows(
    wanted: u64,
    has_views: bool,
    headers: &HeaderMap,
) -> Result<(), RequestError> {
    match written_rows(headers) {
        Some(written) if written == wanted => Ok(()),
        Some(written) if has_views && written > wanted => Ok(()),
        Some(written) => Err(RequestError::Unexpected(format!(
            "ClickHouse reports {written} rows written, but {wanted} were sent"
        ))),
        None => Err(no_summary()),
    }
}

fn no_summary() -> RequestError {
    RequestError::Unexpected(
        "the answer to an insert does not say how many rows were written (no X-ClickHouse-Summary \
         header): does a proxy remove headers?"
            .to_owned(),
    )
}

fn written_rows(headers: &HeaderMap) -> Option<u64> {
    let summary = headers.get("X-ClickHouse-Summary")?.to_str().ok()?;
    let summary: serde_json::Value = serde_json::from_str(summary).ok()?;
    summary.get("written_rows")?.as_str()?.parse().ok()
}

async fn read_answer(response: Response<Incoming>) -> Result<HeaderMap, RequestError> {
    let (head, body) = response.into_parts();
    let code = head
        .headers
        .get("X-ClickHouse-Exception-Code")
        .and_then(|code| code.to_str().ok()?.parse().ok());
    if head.headers.contains_key(CONTENT_ENCODING) {
        return Err(RequestError::Compressed);
    }
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    if head.status.is_success() && code.is_none() {
        // Rows are only safe once the whole answer has arrived, however short it is.
        return match body {
            Ok(body) => {
                let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
                if text.trim().is_empty() {
                    Ok(head.headers)
                } else {
                    Err(RequestError::from_response(Some(200), None, &text))
                }
            }
            Err(error) => Err(RequestError::network(error.as_ref())),
        };
    }
    let text = match body {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(_) => String::new(),
    };
    let text = if text.trim().is_empty() {
        head.status.to_string()
    } else {
        text
    };
    Err(RequestError::from_response(
        Some(head.status.as_u16()),
        code,
        &text,
    ))
}
