//! Stops on signals: the first SIGINT, SIGTERM or SIGHUP starts no new work and ends the run after a
//! clean checkpoint; the second one ends it at once.

use nix::libc::SIGHUP;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Tells whether the run has been asked to stop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    requested: watch::Receiver<Option<u8>>,
}

impl Shutdown {
    /// Starts listening for the signals; `tell` is called on the first one.
    ///
    /// # Errors
    /// The operating system's error if it does not allow a signal handler.
    pub fn listen(tell: impl Fn(&'static str) + Send + 'static) -> std::io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // SIGHUP: the terminal was closed. Ignored under nohup, which asks to outlive the terminal.
        let mut hang_up = match is_ignored(SIGHUP) {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        let (sender, requested) = watch::channel(None);
        tokio::spawn(async move {
            let mut first = true;
            loop {
                let number: u8 = tokio::select! {
                    _ = interrupt.recv() => 2,
                    _ = terminate.recv() => 15,
                    Some(_) = async { hang_up.as_mut()?.recv().await } => 1,
                };
                if !first {
                    // Safe: the state on disk is valid at any moment.
                    std::process::exit(128 + i32::from(number));
                }
                first = false;
                let _ = sender.send(Some(number));
                tell(match number {
                    2 => "interrupted (SIGINT)",
                    15 => "asked to stop (SIGTERM)",
                    _ => "the terminal was closed (SIGHUP)",
                });
            }
        });
        Ok(Self { requested })
    }

    /// Number of the signal that asked the run to stop, if one did.
    pub fn signal(&self) -> Option<u8> {
        *self.requested.borrow()
    }

    /// Waits for a signal and returns its number.
    pub async fn requested(&self) -> u8 {
        let mut requested = self.requested.clone();
        if let Ok(signal) = requested.wait_for(Option::is_some).await
            && let Some(signal) = *signal
        {
            return signal;
        }
        // The listening task is gone, so no signal will ever arrive.
        std::future::pending().await
    }
}

/// Whether the process was started with this signal ignored.
fn is_ignored(signal: i32) -> bool {
    // A bit mask that only Linux offers; elsewhere nohup is rare.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}
