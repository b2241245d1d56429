//! Looks at the clock, so that a run works in its window only.

use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::handle::Throttle;
use super::window::Window;

/// How often the clock is looked at: it may be set, or stand still while the machine sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The clock is looked at until this is dropped.
#[derive(Debug)]
pub(crate) struct KeepingWindow(JoinHandle<()>);

impl Drop for KeepingWindow {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Throttle {
    /// Begins no segment outside of the window from now on. `tell` is told when it opens and closes.
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
                    true => format!("the window {window} is open: going on"),
                    false => format!(
                        "outside of the window {window}: segments under way are finished, and the run \
                         waits"
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
