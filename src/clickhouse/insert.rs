//! An insert whose rows are sent while they are made.
//!
//! The official client's inserts do not tell how many rows the server wrote (it
//! drops the `X-ClickHouse-Summary` header of an insert), and "rows written
//! equal rows sent" is what guards against a row being lost silently. So an
//! insert is posted with the HTTP client underneath.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_ENCODING, HeaderMap, USER_AGENT};
use hyper::{Request, Response};
use tokio::task::JoinHandle;

use super::body::{Feed, StreamedBody, body};
use super::connection::Connection;
use super::error::RequestError;
use super::options::Compression;
use super::servers::Server;
use super::settings::{MAX_QUERY_SIZE, QUERY_SIZE_OF_INSERTS};

/// Bytes of an answer that are read; an exception text is far shorter.
const MAX_ANSWER: usize = 64 * 1024;

/// What an insert is about, but for its rows.
#[derive(Debug, Clone)]
pub struct InsertRequest {
    /// `INSERT INTO … FORMAT Native`
    pub sql: String,
    /// Settings of its own, those of `OF_INSERTS` in `settings.rs`.
    pub settings: Vec<(&'static str, String)>,
    /// Name of the insert in `system.processes`, by which it can be found once its client is gone.
    pub query_id: String,
    /// Whether the target has materialized views; the rows they write are
    /// counted with the target's own.
    pub has_views: bool,
}

/// An insert that is under way. Dropped before it is answered, it breaks off: the server keeps what it
/// has written by then.
pub struct OpenInsert {
    feed: Feed,
    /// Until it is taken.
    answer: Option<JoinHandle<Result<HeaderMap, RequestError>>>,
    rows: u64,
    has_views: bool,
}

impl Connection {
    /// Begins an insert.
    ///
    /// # Errors
    /// [`RequestError::Unexpected`] where the request cannot even be formed.
    pub fn begin_insert(&self, insert: &InsertRequest) -> Result<OpenInsert, RequestError> {
        let (feed, body) = body();
        let server = self.server();
        let request = self.insert_request(&server, insert, body)?;
        let answer = tokio::spawn(async move {
            let answer = match server.http.request(request).await {
                Ok(response) => read_answer(response).await,
                Err(error) => Err(match (error.is_connect(), RequestError::network(&error)) {
                    (true, RequestError::Network(words)) => RequestError::NotConnected(words),
                    (_, error) => error,
                }),
            };
            answer.inspect_err(|error| server.met(error))
        });
        Ok(OpenInsert {
            feed,
            answer: Some(answer),
            rows: 0,
            has_views: insert.has_views,
        })
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
        pairs.append_pair("query_id", &insert.query_id);
        // The number of written rows is in a header, so it must be known by then.
        pairs.append_pair("wait_end_of_query", "1");
        drop(pairs);
        let mut request = Request::post(url.as_str())
            .header(
                USER_AGENT,
                concat!("events-backfill/", env!("CARGO_PKG_VERSION")),
            )
            .header(AUTHORIZATION, self.options.authorization())
            // Otherwise the server reads a body to its end before it says that the insert has
            // failed (measured on 26.7), which may take a whole segment.
            .header(CONNECTION, "close");
        if self.options.compression == Compression::Lz4 {
            request = request.header(CONTENT_ENCODING, "lz4");
        }
        request.body(body).map_err(|error| {
            RequestError::Unexpected(format!("the insert cannot be formed: {error}"))
        })
    }
}

impl OpenInsert {
    /// Adds a block: its bytes in `Native` format, compressed as the connection's options say, the
    /// memory that they hold, and its rows. It does not wait.
    pub fn push(&mut self, pieces: Vec<Bytes>, held_bytes: usize, rows: u64) {
        self.rows += rows;
        self.feed.push(pieces, held_bytes);
    }

    /// Bytes of memory of the blocks that are not sent yet.
    pub fn held_bytes(&self) -> usize {
        self.feed.backlog().bytes()
    }

    /// Rows of all blocks.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Waits until no more bytes than that are held. It may be called again where it was given up.
    ///
    /// # Errors
    /// What the server has answered, which it should not have yet.
    pub async fn at_most(&mut self, held_bytes: usize) -> Result<(), RequestError> {
        let Some(answer) = &mut self.answer else {
            return Err(already_answered());
        };
        let answered = tokio::select! {
            // That the insert has failed counts also where there is room.
            biased;
            answered = answer => answered,
            () = self.feed.backlog().at_most(held_bytes) => return Ok(()),
        };
        self.answer = None;
        joined(answered)?;
        Err(RequestError::Unexpected(
            "ClickHouse has answered an insert before it had all rows".to_owned(),
        ))
    }

    /// Says that there are no more blocks, and waits for the answer. It may be called again where it
    /// was given up.
    ///
    /// # Errors
    /// What the request met, or [`RequestError::Unexpected`] where fewer rows were written than sent.
    pub async fn finish(&mut self) -> Result<(), RequestError> {
        self.feed.end();
        let Some(answer) = &mut self.answer else {
            return Err(already_answered());
        };
        let answered = answer.await;
        self.answer = None;
        self.check_written_rows(&joined(answered)?)
    }

    /// Breaks the insert off, and waits until its memory is given back.
    pub async fn abort(mut self) {
        if let Some(answer) = self.answer.take() {
            answer.abort();
            let _ = answer.await;
        }
    }

    fn check_written_rows(&self, headers: &HeaderMap) -> Result<(), RequestError> {
        let sent = self.rows;
        match written_rows(headers) {
            Some(written) if written == sent => Ok(()),
            Some(written) if self.has_views && written > sent => Ok(()),
            Some(written) => Err(RequestError::Unexpected(format!(
                "ClickHouse reports {written} rows written where {sent} were sent"
            ))),
            None => Err(RequestError::Unexpected(
                "the answer to an insert does not say how many rows were written (no \
                 X-ClickHouse-Summary header): is there a proxy that removes headers?"
                    .to_owned(),
            )),
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
            "an insert ended: {error}"
        )))
    };
    answered.unwrap_or_else(ended)
}

fn already_answered() -> RequestError {
    RequestError::Unexpected("an insert is used that was answered".to_owned())
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
        // Rows are only safe once the whole answer, however short, has come.
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
