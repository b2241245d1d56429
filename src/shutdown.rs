//! Ending when asked to: on the first SIGINT or SIGTERM no new work is begun and
//! the run ends after a clean checkpoint; on the second one it ends at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Tells whether the run has been asked to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    requested: watch::Receiver<Option<u8>>,
}

impl Shutdown {
    /// Listens to the signals from now on.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub fn listen() -> std::io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (sender, requested) = watch::channel(None);
        tokio::spawn(async move {
            let mut first = true;
            loop {
                let number: u8 = tokio::select! {
                    _ = interrupt.recv() => 2,
                    _ = terminate.recv() => 15,
                };
                if !first {
                    // The state on disk is valid at any moment.
                    std::process::exit(128 + i32::from(number));
                }
                first = false;
                let _ = sender.send(Some(number));
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
