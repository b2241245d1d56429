//! The servers that the addresses lead to, replicas or several ways to one: which of them is asked, and which
//! is left out for a while.

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

/// How long a server that has failed is left out, where there is another one.
const LEFT_OUT: Duration = Duration::from_secs(30);
/// Most servers that are told apart behind one name.
const MOST_BEHIND_A_NAME: usize = 64;

/// Makes connections to one server.
pub(super) type Connector = HttpsConnector<HttpConnector<InTurn>>;

/// One server, or one of several ways to it.
pub(super) struct Server {
    /// Its address.
    pub url: Url,
    /// For questions, and what they stream.
    pub client: Client,
    /// For inserts.
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

    /// Is told what a request has met.
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
    /// A sentence where there is none.
    pub(super) fn new(servers: Vec<Server>) -> Result<Self, String> {
        match servers.is_empty() {
            true => Err("there is no address of ClickHouse".to_owned()),
            false => Ok(Self(servers.into_iter().map(Arc::new).collect())),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The one at a place alone, whatever becomes of it.
    pub(super) fn only(&self, place: usize) -> Self {
        Self(Arc::from([Arc::clone(&self.0[place % self.count()])]))
    }

    /// The one at a place, counted round and round, or else the next that is not left out; where all
    /// are, the one that has failed first.
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

/// How many servers a name stands for: a headless service of Kubernetes has an address for each replica.
/// One, where it cannot be told yet, and where it has one address of each kind.
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

/// Resolves a name that stands for several servers: its addresses in an order of their own, so that each of
/// the servers is first in one of them. Where it cannot be reached, the next address is tried.
#[derive(Clone)]
pub(super) struct InTurn {
    resolver: GaiResolver,
    turn: Option<usize>,
}

impl InTurn {
    /// The addresses as the operating system orders them, or, of several servers, the one whose turn it
    /// is first.
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

/// Orders addresses so that it does not matter in which order they came, each of a kind first in a turn.
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
