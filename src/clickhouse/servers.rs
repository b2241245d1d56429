//! The servers behind the addresses (replicas, or several routes to one server): which one to ask, and which
//! to avoid for a while.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use clickhouse::Client;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower_service::Service;
use url::{Host, Url};

use super::body::StreamedBody;
use super::error::RequestError;
use super::heard_out::HearingOut;

/// How long a failed server is avoided, if there is another one.
const LEFT_OUT: Duration = Duration::from_secs(30);
/// Maximum servers distinguished behind one name.
const MOST_BEHIND_A_NAME: usize = 64;

/// Makes connections to one server.
pub(super) type Connector = HttpsConnector<HttpConnector<InTurn>>;

/// One server, or one of several routes to it.
pub(super) struct Server {
    /// Its address.
    pub url: Url,
    /// Client for queries and their streamed results.
    pub client: Client,
    /// Client for inserts.
    pub http: HttpClient<HearingOut<Connector>, StreamedBody>,
    failed: Mutex<Option<Instant>>,
}

impl Server {
    pub(super) fn new(
        url: Url,
        client: Client,
        http: HttpClient<HearingOut<Connector>, StreamedBody>,
    ) -> Self {
        Self {
            url,
            client,
            http,
            failed: Mutex::default(),
        }
    }

    /// Records the error of a request.
    pub(super) fn met(&self, error: &RequestError) {
        if error.is_of_server() {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    fn failed_at(&self) -> Option<Instant> {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_left_out(&self) -> bool {
        self.failed_at()
            .is_some_and(|failed| failed.elapsed() < LEFT_OUT)
    }
}

/// All of them: at least one.
#[derive(Clone)]
pub(super) struct Servers(Arc<[Arc<Server>]>);

impl Servers {
    /// These servers.
    ///
    /// # Errors
    /// A sentence if there are none.
    pub(super) fn new(servers: Vec<Server>) -> Result<Self, String> {
        match servers.is_empty() {
            true => Err("CLICKHOUSE_URL names no address".to_owned()),
            false => Ok(Self(servers.into_iter().map(Arc::new).collect())),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Only the server at `place`, even if it fails.
    pub(super) fn only(&self, place: usize) -> Self {
        Self(Arc::from([Arc::clone(&self.0[place % self.count()])]))
    }

    /// The server at `place` (modulo their number), or else the next that is not avoided; if all are, the
    /// one that failed longest ago.
    pub(super) fn choose(&self, place: usize) -> Arc<Server> {
        let count = self.count();
        let in_turn = (0..count).map(|step| &self.0[(place + step) % count]);
        let chosen = in_turn
            .clone()
            .find(|server| !server.is_left_out())
            .or_else(|| in_turn.min_by_key(|server| server.failed_at()));
        Arc::clone(chosen.unwrap_or(&self.0[0]))
    }
}

/// How many servers are behind a name: a headless Kubernetes service has an address for each replica. One
/// if the name does not resolve yet, or has a single IPv4 and a single IPv6 address.
pub(super) fn behind(url: &Url) -> usize {
    let Some(Host::Domain(name)) = url.host() else {
        return 1;
    };
    let port = url.port_or_known_default().unwrap_or_default();
    let addresses = (name, port).to_socket_addrs().into_iter().flatten();
    let (mut fours, mut sixes): (Vec<IpAddr>, Vec<IpAddr>) = addresses
        .map(|address| address.ip())
        .partition(IpAddr::is_ipv4);
    let counts = [&mut fours, &mut sixes].map(|addresses| {
        addresses.sort_unstable();
        addresses.dedup();
        addresses.len()
    });
    let most = counts.into_iter().max().unwrap_or_default();
    most.clamp(1, MOST_BEHIND_A_NAME)
}

/// Resolves a name that stands for several servers, with a different address first for each of them. If that
/// address cannot be reached, the next one is tried.
#[derive(Clone)]
pub(super) struct InTurn {
    resolver: GaiResolver,
    turn: Option<usize>,
}

impl InTurn {
    /// Without a turn, addresses in the operating system's order; with one, that server's address first.
    pub(super) fn new(turn: Option<usize>) -> Self {
        Self {
            resolver: GaiResolver::new(),
            turn,
        }
    }
}

impl Service<Name> for InTurn {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        self.resolver.poll_ready(context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolving = self.resolver.call(name);
        let turn = self.turn;
        Box::pin(async move {
            let mut addresses: Vec<SocketAddr> = resolving.await?.collect();
            if let Some(turn) = turn {
                in_turn(&mut addresses, turn);
            }
            Ok(addresses.into_iter())
        })
    }
}

/// Sorts the addresses, since DNS returns them in any order, and rotates them by `turn`.
fn in_turn(addresses: &mut [SocketAddr], turn: usize) {
    addresses.sort_unstable();
    if !addresses.is_empty() {
        addresses.rotate_left(turn % addresses.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(hosts: &[u8]) -> Vec<SocketAddr> {
        hosts
            .iter()
            .map(|&host| SocketAddr::from(([10, 0, 0, host], 8123)))
            .collect()
    }

    #[test]
    fn each_address_of_a_name_is_first_in_one_turn_however_they_come() {
        for come in [[1, 2, 3], [3, 1, 2], [2, 3, 1]] {
            for turn in 0..6 {
                let mut ordered = addresses(&come);
                in_turn(&mut ordered, turn);
                let first = u8::try_from(turn % 3).unwrap() + 1;
                assert_eq!(ordered[0], addresses(&[first])[0]);
                assert_eq!(ordered.len(), 3);
            }
        }
        in_turn(&mut [], 1);
    }

    fn servers(count: usize) -> Servers {
        let one = || {
            Server::new(
                Url::parse("http://localhost:8123").unwrap(),
                Client::default(),
                HttpClient::builder(hyper_util::rt::TokioExecutor::new()).build(HearingOut(
                    hyper_rustls::HttpsConnectorBuilder::new()
                        .with_tls_config(
                            crate::clickhouse::tls::client_config(
                                false,
                                &crate::clickhouse::Trust::Machine,
                            )
                            .unwrap(),
                        )
                        .https_or_http()
                        .enable_http1()
                        .wrap_connector(HttpConnector::new_with_resolver(InTurn::new(None))),
                )),
            )
        };
        Servers::new((0..count).map(|_| one()).collect()).unwrap()
    }

    #[test]
    fn a_server_that_has_failed_is_left_out_and_asked_again_where_all_have() {
        let servers = servers(3);
        let network = RequestError::Network("refused".to_owned());
        let chosen = |place| {
            let chosen = servers.choose(place);
            servers.0.iter().position(|one| Arc::ptr_eq(one, &chosen))
        };
        assert_eq!([0, 1, 2, 3].map(chosen), [0, 1, 2, 0].map(Some));
        servers.0[1].met(&RequestError::Unexpected("the query is wrong".to_owned()));
        assert_eq!(chosen(1), Some(1));
        servers.0[1].met(&network);
        assert_eq!([0, 1, 2].map(chosen), [0, 2, 2].map(Some));
        servers.0[0].met(&network);
        servers.0[2].met(&network);
        assert_eq!([0, 1, 2].map(chosen), [1, 1, 1].map(Some));
    }
}
