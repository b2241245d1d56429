//! Inserting one batch.
//!
//! The official client's inserts do not tell how many rows the server wrote (it
//! drops the `X-ClickHouse-Summary` header of an insert), and "rows written
//! equal rows sent" is what guards against a row being lost silently. So a
//! batch is posted with the HTTP client underneath.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, USER_AGENT};
use hyper::{Request, Response};

use super::body::BatchBody;
use super::connection::Connection;
use super::error::RequestError;
use super::options::Compression;

/// How long the server may take to accept and write one batch.
const INSERT_TIMEOUT: Duration = Duration::from_secs(900);
/// Bytes of an answer that are read; an exception text is far shorter.
const MAX_ANSWER: usize = 64 * 1024;

/// The bytes of one insert, ready to be sent any number of times.
#[derive(Debug, Clone)]
pub struct InsertRequest {
    /// `INSERT INTO … FORMAT Native`
    pub sql: String,
    /// `Native` blocks, compressed as the connection's options say.
    pub body: Vec<Bytes>,
    /// Rows in `body`.
    pub rows: u64,
    /// Name of the insert in `system.processes`, by which it can be found once its client is gone.
    pub query_id: String,
    /// Whether the target has materialized views; the rows they write are
    /// counted with the target's own.
    pub has_views: bool,
}

impl Connection {
    /// Sends one batch once, and checks that the server wrote all of it.
    ///
    /// # Errors
    /// Whatever the request met, or [`RequestError::Unexpected`] where fewer
    /// rows were written than sent.
    pub async fn insert(&self, insert: &InsertRequest) -> Result<(), RequestError> {
        let request = self.insert_request(insert)?;
        let answer = async {
            let response = self
                .http
                .request(request)
                .await
                .map_err(|error| RequestError::network(&error))?;
            read_answer(response).await
        };
        let headers = tokio::time::timeout(INSERT_TIMEOUT, answer)
            .await
            .map_err(|_| RequestError::TimedOut {
                doing: "accept a batch",
                limit: INSERT_TIMEOUT,
            })??;
        check_written_rows(&headers, insert)
    }

    fn insert_request(&self, insert: &InsertRequest) -> Result<Request<BatchBody>, RequestError> {
        let mut url = self.options.url.clone();
        let mut pairs = url.query_pairs_mut();
        pairs.clear();
        pairs.append_pair("query", &insert.sql);
        pairs.extend_pairs(self.settings.all());
        pairs.append_pair("query_id", &insert.query_id);
        // The number of written rows is in a header, so it must be known by then.
        pairs.append_pair("wait_end_of_query", "1");
        drop(pairs);
        let body = BatchBody::new(&insert.body);
        let mut request = Request::post(url.as_str())
            .header(
                USER_AGENT,
                concat!("events-backfill/", env!("CARGO_PKG_VERSION")),
            )
            .header(AUTHORIZATION, self.options.authorization())
            .header(CONTENT_LENGTH, body.remaining);
        if self.options.compression == Compression::Lz4 {
            request = request.header(CONTENT_ENCODING, "lz4");
        }
        request.body(body).map_err(|error| {
            RequestError::Unexpected(format!("the insert cannot be formed: {error}"))
        })
    }
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

fn check_written_rows(headers: &HeaderMap, insert: &InsertRequest) -> Result<(), RequestError> {
    let summary = headers
        .get("X-ClickHouse-Summary")
        .and_then(|summary| summary.to_str().ok())
        .and_then(|summary| serde_json::from_str::<serde_json::Value>(summary).ok());
    let written = summary
        .as_ref()
        .and_then(|summary| summary.get("written_rows")?.as_str()?.parse::<u64>().ok());
    match written {
        Some(written) if written == insert.rows => Ok(()),
        Some(written) if insert.has_views && written > insert.rows => Ok(()),
        Some(written) => Err(RequestError::Unexpected(format!(
            "ClickHouse reports {written} rows written where {} were sent",
            insert.rows
        ))),
        None => Err(RequestError::Unexpected(
            "the answer to an insert does not say how many rows were written (no \
             X-ClickHouse-Summary header): is there a proxy that removes headers?"
                .to_owned(),
        )),
    }
}
