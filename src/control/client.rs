//! The client: sends a command to a run.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::protocol::{Answer, Command};
use super::socket;
use crate::throttle::SpeedState;

/// Maximum time for the run to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum bytes of an answer.
const MOST_BYTES: u64 = 64 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// No run is active there.
    NobodyThere,
    /// The run's refusal or the operating system's error, for the operator.
    Refused(String),
}

/// Sends a command to the run whose state is in `directory`, and returns its new speed.
///
/// # Errors
/// [`NoAnswer::NobodyThere`] if no run is active there; [`NoAnswer::Refused`] if it rejects the command,
/// answers too late or cannot be reached.
pub(crate) fn ask(directory: &Path, command: &Command) -> Result<SpeedState, NoAnswer> {
    let answer = exchange(directory, command).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
            NoAnswer::NobodyThere
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => NoAnswer::Refused(format!(
            "the run did not answer within {} s, but may still obey: check with \
             `events-backfill status`",
            PATIENCE.as_secs()
        )),
        _ => NoAnswer::Refused(format!("cannot reach the run: {error}")),
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
