//! The connection, the display and the signals: one of each for a process.

use crate::cli::options::Options;
use crate::clickhouse::Connection;
use crate::clickhouse::retry::Retries;
use crate::error::Error;
use crate::inspect::{Inspected, inspect};
use crate::progress::Display;
use crate::shutdown::Shutdown;
use crate::telemetry::{Serving, Telemetry, serve};
use crate::throttle::{KeepingWindow, Throttle};

/// What all jobs of a process share.
pub struct Session {
    /// The way to ClickHouse; what it asks is asked once.
    pub(crate) connection: Connection,
    /// Where progress is shown.
    pub(crate) display: Display,
    /// Whether the process has been asked to end.
    pub(crate) shutdown: Shutdown,
    /// How fast it may go.
    pub(crate) throttle: Throttle,
    /// What is counted for those who watch it.
    pub(crate) telemetry: Telemetry,
}

impl Session {
    /// Listens to signals from now on, and makes the connection ready. Of the options, the
    /// partition plays no part.
    ///
    /// # Errors
    /// [`Error`] where the operating system does not let it, or TLS is not set up as it should be.
    pub(crate) fn begin(options: &Options) -> Result<Self, Error> {
        let throttle = Throttle::new(&options.throttle, options.concurrency);
        let display = Display::detect(options.quiet, throttle.clock());
        let tell = {
            let display = display.clone();
            move |why| {
                display.note(format_args!(
                    "{why}: ending when the requests under way are done; a second signal ends it at \
                     once"
                ));
            }
        };
        Ok(Self {
            display,
            throttle,
            telemetry: Telemetry::default(),
            shutdown: Shutdown::listen(tell)
                .map_err(|error| Error::caused("the program cannot listen to signals", error))?,
            connection: Connection::new(options.connection.clone())
                .map_err(Error::configuration)?,
        })
    }

    /// Works in its window only from now on, where the options name one.
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

    /// Serves metrics, where the options say where.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) where that address cannot be had.
    pub(crate) async fn serve_metrics(&self, options: &Options) -> Result<Option<Serving>, Error> {
        let Some(address) = options.metrics_listen else {
            return Ok(None);
        };
        let serving = serve(address, self.telemetry.clone(), self.throttle.clone()).await;
        let serving = serving.map_err(|error| {
            Error::configuration(format!(
                "--metrics-listen: {address} cannot be had ({error}): name another one, for example \
                 127.0.0.1:9464"
            ))
        })?;
        let whose = match serving.address.ip().is_loopback() {
            true => "",
            false => ", which others can reach: they see how far it is, and no rows",
        };
        let address = serving.address;
        self.display.note(format_args!(
            "metrics are at http://{address}/metrics{whose}"
        ));
        Ok(Some(serving))
    }

    /// The tries of one job.
    pub(crate) fn retries(&self, options: &Options) -> Retries {
        let display = self.display.clone();
        let telemetry = self.telemetry.clone();
        let tell = move |kind: &str, what: std::fmt::Arguments<'_>| {
            telemetry.retried(kind);
            display.note(what);
        };
        Retries::new(options.max_retries, self.shutdown.clone(), tell)
    }

    /// Looks at server, tables and partition, and settles what the options leave to them; an
    /// address that is wrong is told at once.
    ///
    /// # Errors
    /// [`Kind::Configuration`](crate::error::Kind) with what is wrong, or [`Kind::Interrupted`](crate::error::Kind).
    pub(crate) async fn inspect(
        &self,
        options: &mut Options,
        retries: &Retries,
    ) -> Result<Inspected, Error> {
        self.inspect_by(&self.connection, options, retries).await
    }

    /// Looks at them when the server has answered before: it may be away for a moment.
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

    /// Does something that leaves nothing half done, until it is asked to end.
    ///
    /// # Errors
    /// Those of the work, or [`Kind::Interrupted`](crate::error::Kind).
    pub(crate) async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        unless_interrupted(&self.shutdown, work).await
    }
}

/// Does something that leaves nothing half done, until the process is asked to end.
///
/// # Errors
/// Those of the work, or [`Kind::Interrupted`](crate::error::Kind).
pub(crate) async fn unless_interrupted<T>(
    shutdown: &Shutdown,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        outcome = work => outcome,
        signal = shutdown.requested() => Err(Error::interrupted(signal)),
    }
}
