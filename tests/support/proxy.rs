//! A TCP proxy between the program and ClickHouse, which does to their connections what networks,
//! load balancers and busy servers do: cuts, stalls, truncates, garbles, slows down and refuses.
//!
//! It passes everything on as it is until a [`Fault`] is armed. A fault waits for a statement (any
//! request whose SQL contains a given text) and acts at a given byte of that request or of its
//! response. It counts how often it has acted, so that a test can tell that it tested something.
//!
//! ```ignore
//! let proxy = Proxy::start(server.http_port());
//! let cut = proxy.arm(Fault::once("INSERT INTO", Place::RequestByte(100_000), Action::Cut));
//! // … run the program with CLICKHOUSE_URL=proxy.url() …
//! assert_eq!(cut.count(), 1);
//! ```
//!
//! It understands just enough of HTTP/1.1 to tell requests apart on a connection that is kept alive:
//! every request has a `Content-Length`, but for inserts, whose bodies are as long as they turn out
//! and end their connections; and none is sent before the last one is answered. The SQL of
//! a request is its URL parameter `query` (inserts) or its body (everything else).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use url::Url;

/// How often a thread that waits looks whether there is still something to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long the proxy looks at a socket before it looks whether the connection is over.
const SOCKET_PATIENCE: Duration = Duration::from_millis(50);

/// Bytes that the kernel may hold per socket and direction. By default it is many megabytes, which
/// would hide from both sides that the other one has stopped.
const SOCKET_BUFFER: libc::c_int = 128 * 1024;

/// Bytes taken from a socket at once.
const PIECE: usize = 64 * 1024;

/// More than any head of a request or a response has.
const LONGEST_HEAD: usize = 1024 * 1024;

// -------------------------------------------------------------------------------------------------
// Faults
// -------------------------------------------------------------------------------------------------

/// Where in an exchange of request and response something happens: before the byte of that number.
/// A place behind the last byte is never reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Counted from the first byte of the request's head.
    RequestByte(u64),
    /// Counted from the first byte of the request's body.
    RequestBodyByte(u64),
    /// Counted from the first byte of the response's head. The place 0 is reached when the server
    /// begins to answer, and so has done what was asked of it if it answers at the end.
    ResponseByte(u64),
    /// Counted from the first byte of the response's body.
    ResponseBodyByte(u64),
    /// Where the response has that text.
    ResponseText(&'static str),
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Both connections are reset, as when a machine between them restarts.
    Cut,
    /// All connections are reset, and from then on another server is behind the proxy: see
    /// [`Proxy::between`].
    Switch,
    /// Both connections are closed in good order, as if that were the end.
    Truncate,
    /// Nothing is passed on in this direction for so long. See [`FOREVER`].
    Stall(Duration),
    /// One bit of the byte arrives wrong.
    Corrupt,
    /// From there on, to the end of the exchange, there is a pause after so many bytes.
    Slow { bytes: usize, pause: Duration },
    /// The proxy answers in place of the server, which never hears of the request. The place does
    /// not matter.
    Answer {
        /// Status and reason, for example `503 Service Unavailable`.
        status: &'static str,
        /// Whether the connection ends with the answer.
        close: bool,
    },
}

/// A [`Action::Stall`] without end.
pub const FOREVER: Duration = Duration::MAX;

/// Something to happen to the requests of a kind.
#[derive(Debug)]
pub struct Fault {
    statement: &'static str,
    place: Place,
    action: Action,
    skipped_requests: u64,
    times: u64,
    seen_requests: AtomicU64,
    count: AtomicU64,
    lifted: AtomicBool,
}

impl Fault {
    /// Happens to the first request whose SQL contains that text and which reaches that place.
    pub fn once(statement: &'static str, place: Place, action: Action) -> Fault {
        Fault {
            statement,
            place,
            action,
            skipped_requests: 0,
            times: 1,
            seen_requests: AtomicU64::new(0),
            count: AtomicU64::new(0),
            lifted: AtomicBool::new(false),
        }
    }

    /// Leaves out the first requests of that kind.
    pub fn skip(mut self, requests: u64) -> Fault {
        self.skipped_requests = requests;
        self
    }

    /// Happens so many times, each to another request.
    pub fn times(mut self, times: u64) -> Fault {
        self.times = times;
        self
    }

    /// Happens to every request of that kind, until it is lifted.
    pub fn always(self) -> Fault {
        self.times(u64::MAX)
    }

    /// How often it has happened.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Ends it; also a stall or a slowness that is going on.
    pub fn lift(&self) {
        self.lifted.store(true, Ordering::SeqCst);
    }

    fn is_lifted(&self) -> bool {
        self.lifted.load(Ordering::SeqCst)
    }

    /// Whether this request is one that it may happen to.
    fn is_for(&self, sql: &str) -> bool {
        sql.contains(self.statement)
            && self.seen_requests.fetch_add(1, Ordering::SeqCst) >= self.skipped_requests
            && self.count() < self.times
            && !self.is_lifted()
    }

    /// Counts it, unless it has happened often enough.
    fn happen(&self) -> bool {
        let next = |count| (count < self.times && !self.is_lifted()).then_some(count + 1);
        self.count
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, next)
            .is_ok()
    }

    /// The byte at which it happens in this direction, if that is known.
    fn offset(&self, direction: Direction, head_bytes: u64) -> Option<u64> {
        match (self.place, direction) {
            (Place::RequestByte(byte), Direction::Request)
            | (Place::ResponseByte(byte), Direction::Response) => Some(byte),
            (Place::RequestBodyByte(byte), Direction::Request)
            | (Place::ResponseBodyByte(byte), Direction::Response) => Some(head_bytes + byte),
            _ => None,
        }
    }

    /// Where in the bytes that begin at `begin` it happens, if it does.
    fn position(
        &self,
        direction: Direction,
        head_bytes: u64,
        begin: u64,
        bytes: &[u8],
    ) -> Option<usize> {
        if let (Place::ResponseText(text), Direction::Response) = (self.place, direction) {
            let mut windows = bytes.windows(text.len());
            return windows.position(|window| window == text.as_bytes());
        }
        let offset = self.offset(direction, head_bytes)?.checked_sub(begin)?;
        let position = usize::try_from(offset).ok()?;
        (position < bytes.len()).then_some(position)
    }
}

// -------------------------------------------------------------------------------------------------
// The proxy
// -------------------------------------------------------------------------------------------------

/// A proxy that runs until it is dropped. All its connections end then.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    faults: Mutex<Vec<Arc<Fault>>>,
    exchanges: Mutex<Vec<Arc<Exchange>>>,
    /// The ports of the servers.
    servers: Vec<u16>,
    /// How often another server has taken the place of the one before. A connection of before is over.
    switches: AtomicUsize,
    is_closing: AtomicBool,
}

impl Proxy {
    /// Starts a proxy on a port of its own, in front of that port of this machine.
    pub fn start(server_port: u16) -> Proxy {
        Self::between([server_port])
    }

    /// A proxy before several servers, as a load balancer is: all new connections lead to the first,
    /// until [`Action::Switch`] has the next one take its place, round and round.
    pub fn between<const N: usize>(servers: [u16; N]) -> Proxy {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port for a proxy");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            servers: servers.to_vec(),
            ..Shared::default()
        });
        let for_connections = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if for_connections.is_closing.load(Ordering::SeqCst) {
                    break;
                }
                let switches = for_connections.switches.load(Ordering::SeqCst);
                let port = for_connections.servers[switches % for_connections.servers.len()];
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
                // Where the server is away, the client finds its connection closed.
                if let (Ok(client), Ok(server)) = (client, server) {
                    Connection::begin(client, server, switches, &for_connections);
                }
            }
        });
        Proxy { port, shared }
    }

    /// The address of the proxy, as the value of `CLICKHOUSE_URL`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a fault happen from now on. Several faults may happen to one request.
    pub fn arm(&self, fault: Fault) -> Arc<Fault> {
        let fault = Arc::new(fault);
        lock(&self.shared.faults).push(Arc::clone(&fault));
        fault
    }

    /// All requests so far whose SQL contains that text, in their order.
    pub fn exchanges(&self, statement: &str) -> Vec<Arc<Exchange>> {
        let exchanges = lock(&self.shared.exchanges);
        let matching = exchanges
            .iter()
            .filter(|exchange| exchange.sql.contains(statement));
        matching.cloned().collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// A test that panicked while it held a lock must not keep the others from going on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request and its response.
#[derive(Debug, Default)]
pub struct Exchange {
    /// What was asked.
    pub sql: String,
    faults: Vec<Arc<Fault>>,
    request: Passed,
    response: Passed,
}

impl Exchange {
    /// Bytes of the response that were passed on so far, head included.
    pub fn response_bytes(&self) -> u64 {
        self.response.bytes.load(Ordering::SeqCst)
    }

    fn passed(&self, direction: Direction) -> &Passed {
        match direction {
            Direction::Request => &self.request,
            Direction::Response => &self.response,
        }
    }
}

/// How far one direction of an exchange is.
#[derive(Debug, Default)]
struct Passed {
    head_bytes: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Response,
}

// -------------------------------------------------------------------------------------------------
// One connection
// -------------------------------------------------------------------------------------------------

/// A connection of the program, and the one to the server that belongs to it. One thread passes the
/// requests on and another one the responses; the sockets are closed when both have ended.
struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// How often there had been another server when it began.
    switches: usize,
    shared: Arc<Shared>,
    current: Mutex<Arc<Exchange>>,
    is_over: AtomicBool,
}

impl Connection {
    fn begin(client: TcpStream, server: TcpStream, switches: usize, shared: &Arc<Shared>) {
        for socket in [&client, &server] {
            let prepared = socket
                .set_nodelay(true)
                .and_then(|()| socket.set_read_timeout(Some(SOCKET_PATIENCE)))
                .and_then(|()| socket.set_write_timeout(Some(SOCKET_PATIENCE)));
            prepared.expect("a socket takes these options");
            set_option(socket, libc::SO_RCVBUF, &SOCKET_BUFFER);
            set_option(socket, libc::SO_SNDBUF, &SOCKET_BUFFER);
        }
        let connection = Arc::new(Connection {
            client,
            server,
            switches,
            shared: Arc::clone(shared),
            current: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let same = Arc::clone(&connection);
        thread::spawn(move || {
            let _ = same.pass_requests_on();
            same.is_over.store(true, Ordering::SeqCst);
        });
        thread::spawn(move || {
            let _ = connection.pass_responses_on();
            connection.is_over.store(true, Ordering::SeqCst);
            // At once, so that the program sends no further request into it.
            let _ = connection.client.shutdown(Shutdown::Write);
        });
    }

    fn pass_requests_on(&self) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let head_bytes = self.read_head(&self.client, &mut buffer)?;
            let head = String::from_utf8_lossy(&buffer[..head_bytes]).into_owned();
            let total = match is_chunked(&head) {
                // It is the last one.
                true => usize::MAX,
                false => head_bytes + content_length(&head),
            };
            let sql = match query_parameter(&head) {
                Some(sql) => sql,
                None => {
                    while buffer.len() < total {
                        self.read_more(&self.client, &mut buffer)?;
                    }
                    String::from_utf8_lossy(&buffer[head_bytes..total]).into_owned()
                }
            };
            let exchange = self.begin_exchange(sql, head_bytes);
            let mut answered = false;
            for fault in &exchange.faults {
                if let Action::Answer { status, close } = fault.action
                    && !answered
                    && fault.happen()
                {
                    let answer = answer(status, close);
                    if total == usize::MAX {
                        self.write(Direction::Response, &exchange, answer.as_bytes())?;
                        // A load balancer lets the client read that before it resets the connection.
                        return self.drop_request(&mut buffer, total);
                    }
                    self.drop_request(&mut buffer, total)?;
                    self.write(Direction::Response, &exchange, answer.as_bytes())?;
                    if close {
                        return Ok(());
                    }
                    answered = true;
                }
            }
            if !answered {
                self.pass_request_on(&exchange, &mut buffer, total)?;
            }
        }
    }

    fn begin_exchange(&self, sql: String, head_bytes: usize) -> Arc<Exchange> {
        let faults = lock(&self.shared.faults);
        let exchange = Arc::new(Exchange {
            faults: faults.iter().filter(|f| f.is_for(&sql)).cloned().collect(),
            sql,
            ..Exchange::default()
        });
        let head = &exchange.request.head_bytes;
        head.store(head_bytes as u64, Ordering::SeqCst);
        lock(&self.shared.exchanges).push(Arc::clone(&exchange));
        *lock(&self.current) = Arc::clone(&exchange);
        exchange
    }

    /// Passes on a request of `total` bytes, whose beginning is in the buffer.
    fn pass_request_on(
        &self,
        exchange: &Exchange,
        buffer: &mut Vec<u8>,
        total: usize,
    ) -> io::Result<()> {
        let mut left = total;
        loop {
            let now = left.min(buffer.len());
            self.pass_on(Direction::Request, exchange, &mut buffer[..now])?;
            buffer.drain(..now);
            left -= now;
            if left == 0 {
                return Ok(());
            }
            self.read_more(&self.client, buffer)?;
        }
    }

    /// Reads a request of `total` bytes to its end, as a load balancer does before it refuses it.
    fn drop_request(&self, buffer: &mut Vec<u8>, total: usize) -> io::Result<()> {
        let mut left = total;
        while left > buffer.len() {
            left -= buffer.len();
            buffer.clear();
            self.read_more(&self.client, buffer)?;
        }
        buffer.drain(..left);
        Ok(())
    }

    fn pass_responses_on(&self) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            self.read_more(&self.server, &mut buffer)?;
            let exchange = Arc::clone(&lock(&self.current));
            if exchange.response_bytes() == 0 {
                let head_bytes = self.read_head(&self.server, &mut buffer)?;
                let head = &exchange.response.head_bytes;
                head.store(head_bytes as u64, Ordering::SeqCst);
            }
            self.pass_on(Direction::Response, &exchange, &mut buffer)?;
            buffer.clear();
        }
    }

    /// Passes bytes on in one direction, and does meanwhile what the faults say.
    fn pass_on(
        &self,
        direction: Direction,
        exchange: &Exchange,
        bytes: &mut [u8],
    ) -> io::Result<()> {
        let passed = exchange.passed(direction);
        let head_bytes = passed.head_bytes.load(Ordering::SeqCst);
        let begin = passed.bytes.load(Ordering::SeqCst);
        let faults = exchange.faults.iter();
        let mut due: Vec<(usize, &Fault)> = faults
            .filter_map(|fault| {
                let position = fault.position(direction, head_bytes, begin, bytes)?;
                Some((position, &**fault))
            })
            .collect();
        due.sort_by_key(|(position, _)| *position);
        let mut written = 0;
        for (position, fault) in due {
            self.write(direction, exchange, &bytes[written..position])?;
            written = position;
            if fault.happen() {
                self.do_at(fault, &mut bytes[position])?;
            }
        }
        self.write(direction, exchange, &bytes[written..])
    }

    /// Does what a fault says, before this byte is passed on.
    fn do_at(&self, fault: &Fault, byte: &mut u8) -> io::Result<()> {
        match fault.action {
            Action::Cut | Action::Switch => {
                if fault.action == Action::Switch {
                    self.shared.switches.fetch_add(1, Ordering::SeqCst);
                }
                // Closed sockets that linger for no time send a reset.
                let no_time = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                set_option(&self.client, libc::SO_LINGER, &no_time);
                set_option(&self.server, libc::SO_LINGER, &no_time);
                self.is_over.store(true, Ordering::SeqCst);
                Err(over())
            }
            Action::Truncate => {
                self.client.shutdown(Shutdown::Write)?;
                self.is_over.store(true, Ordering::SeqCst);
                Err(over())
            }
            Action::Stall(duration) => self.wait(duration, fault),
            Action::Corrupt => {
                *byte ^= 1 << 4;
                Ok(())
            }
            // From now on `write` heeds it; and answers are given before anything is passed on.
            Action::Slow { .. } | Action::Answer { .. } => Ok(()),
        }
    }

    /// Waits so long, or until the fault is lifted.
    fn wait(&self, duration: Duration, fault: &Fault) -> io::Result<()> {
        let began = Instant::now();
        while began.elapsed() < duration && !fault.is_lifted() {
            self.check()?;
            thread::sleep(LOOK_AGAIN.min(duration));
        }
        Ok(())
    }

    /// Writes bytes, slowly where a fault says so.
    fn write(&self, direction: Direction, exchange: &Exchange, bytes: &[u8]) -> io::Result<()> {
        let mut socket = match direction {
            Direction::Request => &self.server,
            Direction::Response => &self.client,
        };
        let passed = exchange.passed(direction);
        let mut rest = bytes;
        while !rest.is_empty() {
            let slow = self.slowness(direction, exchange);
            let (piece, pause) = slow.unwrap_or((rest.len(), Duration::ZERO));
            let piece = &rest[..piece.min(rest.len())];
            match self.until_ready(|| socket.write(piece))? {
                0 => return Err(over()),
                count => {
                    passed.bytes.fetch_add(count as u64, Ordering::SeqCst);
                    rest = &rest[count..];
                }
            }
            thread::sleep(pause);
        }
        Ok(())
    }

    /// How many bytes to write before which pause.
    fn slowness(&self, direction: Direction, exchange: &Exchange) -> Option<(usize, Duration)> {
        let passed = exchange.passed(direction);
        let head_bytes = passed.head_bytes.load(Ordering::SeqCst);
        let position = passed.bytes.load(Ordering::SeqCst);
        exchange.faults.iter().find_map(|fault| {
            let begun = fault.offset(direction, head_bytes)? <= position && fault.count() > 0;
            match fault.action {
                Action::Slow { bytes, pause } if begun && !fault.is_lifted() => {
                    Some((bytes, pause))
                }
                _ => None,
            }
        })
    }

    /// Reads until the buffer begins with a whole head, and gives its length.
    fn read_head(&self, socket: &TcpStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            let end = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            match end {
                Some(end) => return Ok(end + 4),
                None if buffer.len() > LONGEST_HEAD => return Err(over()),
                None => self.read_more(socket, buffer)?,
            }
        }
    }

    /// Reads what there is, but something. The end of the stream is an error.
    fn read_more(&self, mut socket: &TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
        let length = buffer.len();
        buffer.resize(length + PIECE, 0);
        let read = self.until_ready(|| socket.read(&mut buffer[length..]));
        buffer.truncate(length + *read.as_ref().unwrap_or(&0));
        match read? {
            0 => Err(over()),
            _ => Ok(()),
        }
    }

    /// Tries something with a socket until it is ready for it.
    fn until_ready(&self, mut attempt: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        loop {
            self.check()?;
            match attempt() {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                result => return result,
            }
        }
    }

    /// Fails when there is nothing more to do.
    fn check(&self) -> io::Result<()> {
        let is_closing = self.shared.is_closing.load(Ordering::SeqCst)
            || self.shared.switches.load(Ordering::SeqCst) != self.switches;
        match is_closing || self.is_over.load(Ordering::SeqCst) {
            true => Err(over()),
            false => Ok(()),
        }
    }
}

fn over() -> io::Error {
    io::Error::from(ErrorKind::ConnectionAborted)
}

/// Sets an option of the level `SOL_SOCKET`.
fn set_option<T>(socket: &TcpStream, name: libc::c_int, value: &T) {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    // SAFETY: the socket is open as long as it is borrowed, and `value` points to `length` bytes.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
}

// -------------------------------------------------------------------------------------------------
// As much of HTTP as is needed
// -------------------------------------------------------------------------------------------------

/// What a load balancer answers that has no server to ask.
fn answer(status: &str, close: bool) -> String {
    let body = format!(
        "<html>\r\n<head><title>{status}</title></head>\r\n\
         <body><center><h1>{status}</h1></center></body>\r\n</html>\r\n"
    );
    let connection = match close {
        true => "close",
        false => "keep-alive",
    };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\
         Connection: {connection}\r\n\r\n{body}",
        body.len()
    )
}

fn content_length(head: &str) -> usize {
    let length = header(head, "content-length");
    length.map_or(0, |length| length.parse().expect("a length is a number"))
}

fn is_chunked(head: &str) -> bool {
    header(head, "transfer-encoding").is_some_and(|coding| coding == "chunked")
}

/// The value of a header.
fn header<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    let headers = head.lines().filter_map(|line| line.split_once(':'));
    let mut values = headers.filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
    values.next().map(|(_, value)| value.trim())
}

/// The URL parameter `query`.
fn query_parameter(head: &str) -> Option<String> {
    let path = head.split(' ').nth(1)?;
    let url = Url::parse("http://proxy").ok()?.join(path).ok()?;
    let mut parameters = url.query_pairs();
    parameters.find_map(|(name, value)| (name == "query").then(|| value.into_owned()))
}
