//! The address at which metrics are.

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

/// Connections at once: more are closed.
const MOST_CONNECTIONS: usize = 16;
/// How long a client may take for a request, and for its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long nothing is accepted after that has failed.
const AFTER_ERROR: Duration = Duration::from_millis(100);
/// The format, as OpenMetrics 1.0 has it.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics are there until this is dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    /// Where they are.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves `/metrics`, `/healthz` (the process answers) and `/readyz` (it works on a month).
///
/// # Errors
/// Whatever the operating system says of the address.
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
                // Too many files are open, or the client has gone.
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            };
            // Whoever opens too many does not keep others from being answered for long.
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
                // Whoever hangs up need not have the answer.
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
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is understood\n");
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
        "/readyz" if telemetry.is_at_work() => text(StatusCode::OK, "at work\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not at work on a month\n"),
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /metrics, /healthz and /readyz\n",
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
