//! Ending when asked to: on the first SIGINT, SIGTERM or SIGHUP no new work is begun and the run ends
//! after a clean checkpoint; on the second one it ends at once.

use nix::libc::SIGHUP;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Tells whether the run has been asked to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    requested: watch::Receiver<Option<u8>>,
}

impl Shutdown {
    /// Listens to the signals from now on, and tells of the first one at once.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub fn listen(tell: impl Fn(&'static str) + Send + 'static) -> std::io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // The terminal is gone. Not where the program was begun so that it outlives it, by nohup.
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
                    // The state on disk is valid at any moment.
                    std::process::exit(128 + i32::from(number));
                }
                first = false;
                let _ = sender.send(Some(number));
                tell(match number {
                    2 => "interrupted (SIGINT)",
                    15 => "told to end (SIGTERM)",
                    _ => "the terminal is gone (SIGHUP)",
                });
            }
        });
        Ok(Self { requested })
    }

    /// Number of the signal that asked the run to end, if one did.
    pub fn signal(&self) -> Option<u8> {
        *self.requested.borrow()
    }

    /// Waits until the run is asked to end, and gives the number of the signal.
    pub async fn requested(&self) -> u8 {
        let mut requested = self.requested.clone();
        if let Ok(signal) = requested.wait_for(Option::is_some).await
            && let Some(signal) = *signal
        {
            return signal;
        }
        // Nobody listens to signals any more: it will not be asked.
        std::future::pending().await
    }
}

/// Whether whoever began the program has it ignore a signal.
fn is_ignored(signal: i32) -> bool {
    // The kernel says it as a mask of bits. Only Linux does, and elsewhere nohup is rare.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}
