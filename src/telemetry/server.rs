//! The HTTP server for metrics and health checks.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::counters::Telemetry;
use super::metrics::registry;
use crate::throttle::Throttle;

/// Maximum simultaneous connections. Any more are closed at once.
const MOST_CONNECTIONS: usize = 16;
/// Time allowed to send a request, and again to receive the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause after a failed accept.
const AFTER_ERROR: Duration = Duration::from_millis(100);
/// Content type of OpenMetrics 1.0.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves metrics until dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    /// The bound address.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves `/metrics`, `/healthz` (the process is alive) and `/readyz` (a month is in progress).
///
/// # Errors
/// [`io::Error`] if the address cannot be bound.
pub(crate) async fn serve(
    address: SocketAddr,
    telemetry: Telemetry,
    throttle: Throttle,
) -> io::Result<Serving> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let registry = Arc::new(registry(telemetry.clone(), throttle));
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let task = tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Usually the process is out of file descriptors, or the client hung up.
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            };
            // Excess connections are dropped, so one greedy client cannot block the others for
            // long.
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                continue;
            };
            let (registry, telemetry) = (Arc::clone(&registry), telemetry.clone());
            let service = service_fn(move |request| {
                let answer = answer(&request, &registry, &telemetry);
                async { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                // The client may hang up before the answer; that is its business.
                let _ = tokio::time::timeout(2 * PATIENCE, connection).await;
                drop(permit);
            });
        }
    });
    Ok(Serving { address, task })
}

fn answer(
    request: &Request<Incoming>,
    registry: &Registry,
    telemetry: &Telemetry,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is supported\n");
    }
    match request.uri().path() {
        "/metrics" => {
            let mut metrics = String::new();
            match encode(&mut metrics, registry) {
                Ok(()) => with_type(StatusCode::OK, FORMAT, metrics),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if telemetry.is_at_work() => text(StatusCode::OK, "in progress\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "no month in progress\n"),
        _ => text(
            StatusCode::NOT_FOUND,
            "not found: use /metrics, /healthz or /readyz\n",
        ),
    }
}

fn text(status: StatusCode, words: impl Into<Bytes>) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", words)
}

fn with_type(
    status: StatusCode,
    format: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static(format),
    );
    response
}
