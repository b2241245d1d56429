//! Watches the clock to keep a run inside its window.

use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::handle::Throttle;
use super::window::Window;

/// How often to check. One long sleep would miss a changed clock or a suspended machine.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Checks the clock until dropped.
#[derive(Debug)]
pub(crate) struct KeepingWindow(JoinHandle<()>);

impl Drop for KeepingWindow {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Throttle {
    /// From now on starts segments inside the window only. `tell` gets a message when it opens or
    /// closes.
    pub(crate) fn keep_window(
        &self,
        window: Window,
        tell: impl Fn(String) + Send + Sync + 'static,
    ) -> KeepingWindow {
        let throttle = self.clone();
        let mut was_open = true;
        let mut look = move || {
            let is_open = window.is_open(Timestamp::now());
            throttle.open(is_open);
            if is_open != was_open {
                was_open = is_open;
                let what = match is_open {
                    true => format!("the window {window} is open: continuing"),
                    false => format!(
                        "the window {window} is closed: finishing the running segments, then \
                         waiting"
                    ),
                };
                tell(what);
            }
        };
        look();
        KeepingWindow(tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                look();
            }
        }))
    }
}
