//! The server: receives commands in the run.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::protocol::{Answer, Command};
use super::socket;
use crate::throttle::{SpeedState, Throttle};

/// Maximum bytes of a command.
const MOST_BYTES: u64 = 4096;
/// Maximum time for a client to send its command and take the answer; also the pause after a failed
/// accept.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens until dropped, and then removes the socket.
#[derive(Debug)]
pub(crate) struct Listening {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens in a directory that this process has locked. Calls `tell` with the new speed after every
/// change.
///
/// # Errors
/// [`io::Error`] if the socket cannot be created or its permissions cannot be set.
pub(crate) fn listen(
    directory: &Path,
    throttle: Throttle,
    tell: impl Fn(&SpeedState) + Send + Sync + 'static,
) -> io::Result<Listening> {
    let path = directory.join(socket::NAME);
    // Only a killed process can have left it: the lock keeps others out.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = socket::with_path(directory, |path| UnixListener::bind(path))?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    let tell: Arc<dyn Fn(&SpeedState) + Send + Sync> = Arc::new(tell);
    let task = tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (throttle, tell) = (throttle.clone(), Arc::clone(&tell));
                    tokio::spawn(async move {
                        // A client that is gone needs no answer.
                        let _ =
                            tokio::time::timeout(PATIENCE, serve(stream, &throttle, &*tell)).await;
                    });
                }
                // Most likely too many open files: try again later.
                Err(_) => tokio::time::sleep(PATIENCE).await,
            }
        }
    });
    Ok(Listening { path, task })
}

async fn serve(
    stream: UnixStream,
    throttle: &Throttle,
    tell: &(dyn Fn(&SpeedState) + Send + Sync),
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(MOST_BYTES))
        .read_line(&mut line)
        .await?;
    let answer: Answer = match serde_json::from_str(&line) {
        Ok(command) => carry_out(command, throttle, tell),
        Err(error) => Err(format!("the run does not know this command: {error}")),
    };
    let mut answer = serde_json::to_vec(&answer)?;
    answer.push(b'\n');
    writer.write_all(&answer).await
}

fn carry_out(
    command: Command,
    throttle: &Throttle,
    tell: &(dyn Fn(&SpeedState) + Send + Sync),
) -> Answer {
    match command {
        Command::State => return Ok(throttle.state()),
        Command::Pause => throttle.pause(),
        Command::Continue => throttle.go_on(),
        Command::Set(wishes) => throttle.set(&wishes)?,
    }
    let state = throttle.state();
    tell(&state);
    Ok(state)
}
