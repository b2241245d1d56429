//! The side of who asks.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::protocol::{Answer, Command};
use super::socket;
use crate::throttle::SpeedState;

/// How long the run may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const MOST_BYTES: u64 = 64 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// No run is at work there.
    NobodyThere,
    /// A sentence with what the run, or the operating system, says.
    Refused(String),
}

/// Asks the run whose state is in a directory for something.
///
/// # Errors
/// [`NoAnswer`].
pub(crate) fn ask(directory: &Path, command: &Command) -> Result<SpeedState, NoAnswer> {
    let answer = exchange(directory, command).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
            NoAnswer::NobodyThere
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => NoAnswer::Refused(format!(
            "the run does not answer within {} s, and may do it all the same",
            PATIENCE.as_secs()
        )),
        _ => NoAnswer::Refused(format!("the run does not answer: {error}")),
    })?;
    answer.map_err(NoAnswer::Refused)
}

fn exchange(directory: &Path, command: &Command) -> io::Result<Answer> {
    let mut stream = socket::with_path(directory, |path| UnixStream::connect(path))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    stream.take(MOST_BYTES).read_to_string(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
