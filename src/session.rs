//! What a process has one of: connection, display, signal handling, throttle and metrics.

use crate::cli::options::Options;
use crate::clickhouse::Connection;
use crate::clickhouse::retry::Retries;
use crate::error::Error;
use crate::inspect::{Inspected, inspect};
use crate::progress::Display;
use crate::shutdown::Shutdown;
use crate::telemetry::{Serving, Telemetry, serve};
use crate::throttle::{KeepingWindow, Throttle};

/// Shared by all jobs of a process.
pub struct Session {
    /// The connection to ClickHouse. It does not retry.
    pub(crate) connection: Connection,
    /// Shows progress.
    pub(crate) display: Display,
    /// Tells whether the process has been asked to stop.
    pub(crate) shutdown: Shutdown,
    /// Decides how fast the work may go.
    pub(crate) throttle: Throttle,
    /// The counters behind the metrics.
    pub(crate) telemetry: Telemetry,
}

impl Session {
    /// Starts listening for signals and prepares the connection. Ignores the partition in `options`.
    ///
    /// # Errors
    /// [`Error`] if the operating system does not allow signal handlers, or if TLS is set up wrongly.
    pub(crate) fn begin(options: &Options) -> Result<Self, Error> {
        let throttle = Throttle::new(&options.throttle, options.concurrency);
        let display = Display::detect(options.quiet, throttle.clock());
        let tell = {
            let display = display.clone();
            move |why| {
                display.note(format_args!(
                    "{why}: finishing the requests under way, then stopping; a second signal stops immediately"
                ));
            }
        };
        Ok(Self {
            display,
            throttle,
            telemetry: Telemetry::default(),
            shutdown: Shutdown::listen(tell)
                .map_err(|error| Error::caused("cannot listen for signals", error))?,
            connection: Connection::new(options.connection.clone())
                .map_err(Error::configuration)?,
        })
    }

    /// From now on works only within the time window of the options, if they name one.
    pub(crate) fn keep_window(&self, options: &Options) -> Option<KeepingWindow> {
        let window = options.throttle.window.clone()?;
        let display = self.display.clone();
        let throttle = self.throttle.clone();
        let tell = move |what: String| {
            display.note(&what);
            throttle.state().show(&display);
        };
        Some(self.throttle.keep_window(window, tell))
    }

    /// Serves metrics at the address of the options, if they name one.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) if it cannot listen on that address.
    pub(crate) async fn serve_metrics(&self, options: &Options) -> Result<Option<Serving>, Error> {
        let Some(address) = options.metrics_listen else {
            return Ok(None);
        };
        let serving = serve(address, self.telemetry.clone(), self.throttle.clone()).await;
        let serving = serving.map_err(|error| {
            Error::configuration(format!(
                "--metrics-listen: cannot listen on {address} ({error}): choose another address, for \
                 example 127.0.0.1:9464"
            ))
        })?;
        let whose = match serving.address.ip().is_loopback() {
            true => "",
            false => "; other machines can reach it and see the progress, but no rows",
        };
        let address = serving.address;
        self.display
            .note(format_args!("metrics: http://{address}/metrics{whose}"));
        Ok(Some(serving))
    }

    /// The retries of one job.
    pub(crate) fn retries(&self, options: &Options) -> Retries {
        let display = self.display.clone();
        let telemetry = self.telemetry.clone();
        let tell = move |kind: &str, what: std::fmt::Arguments<'_>| {
            telemetry.retried(kind);
            display.note(what);
        };
        Retries::new(options.max_retries, self.shutdown.clone(), tell)
    }

    /// Checks server, tables and partition, and fills in the options that depend on them. Does not
    /// retry, so that a wrong address is reported at once.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) if something is wrong, or
    /// [`Kind::Interrupted`](crate::error::Kind).
    pub(crate) async fn inspect(
        &self,
        options: &mut Options,
        retries: &Retries,
    ) -> Result<Inspected, Error> {
        self.inspect_by(&self.connection, options, retries).await
    }

    /// Like [`Session::inspect`], for a server that has answered before: retries, since it may be
    /// away for a moment.
    ///
    /// # Errors
    /// See [`Session::inspect`].
    pub(crate) async fn inspect_again(
        &self,
        options: &mut Options,
        retries: &Retries,
    ) -> Result<Inspected, Error> {
        let connection = self.connection.with_retries(retries);
        self.inspect_by(&connection, options, retries).await
    }

    async fn inspect_by(
        &self,
        connection: &Connection,
        options: &mut Options,
        retries: &Retries,
    ) -> Result<Inspected, Error> {
        let inspected = self
            .unless_interrupted(inspect(connection, options, retries))
            .await?;
        for note in &inspected.notes {
            self.display.note_once(note.clone());
        }
        for warning in &inspected.warnings {
            self.display.warn_once(warning.clone());
        }
        Ok(inspected)
    }

    /// Runs `work` and drops it when a signal arrives. Only for work that can be dropped at any point.
    ///
    /// # Errors
    /// The error of `work`, or [`Kind::Interrupted`](crate::error::Kind).
    pub(crate) async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        unless_interrupted(&self.shutdown, work).await
    }
}

/// Runs `work` and drops it when a signal arrives. Only for work that can be dropped at any point.
///
/// # Errors
/// The error of `work`, or [`Kind::Interrupted`](crate::error::Kind).
pub(crate) async fn unless_interrupted<T>(
    shutdown: &Shutdown,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        outcome = work => outcome,
        signal = shutdown.requested() => Err(Error::interrupted(signal)),
    }
}
