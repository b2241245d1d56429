//! Locks the state directories of a run.

use std::time::{Duration, Instant};

use crate::cli::options::Options;
use crate::error::Error;
use crate::session::Session;
use crate::state::directory::{PartitionDir, StateDir};

/// How long to wait for a previous process that was told to end: longer than it waits for its inserts
/// (ten seconds), and than the grace period in `deploy/`.
const ENDING: Duration = Duration::from_secs(60);
/// Interval between checks.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Fails if another process works on some of this run's days under another share of the month. Its
/// inserts do not give it away while it loads traces.
fn refuse_overlap(options: &Options) -> Result<(), Error> {
    let own = options.share();
    let others = PartitionDir::of_partition(&options.state_dir, options.partition);
    for other in others.iter().filter(|other| other.share != own) {
        if let Some(holder) = other.holder()
            && other.share.overlaps(own)
            && !options.dry_run
        {
            return Err(Error::configuration(format!(
                "{own} overlaps {}, which {holder} is writing: wait for it to end, or stop it, then run \
                 this again",
                other.share
            )));
        }
    }
    Ok(())
}

/// Locks the state directory of a run. With `--resume-or-start`, waits for the process that holds it:
/// when a container is replaced, the previous one may still be ending.
///
/// # Errors
/// Those of [`StateDir::prepare`]; [`Kind::Configuration`](crate::error::Kind) if another process holds
/// the directory or overlapping days; [`Kind::Failed`](crate::error::Kind), which a supervisor retries,
/// if the wait was in vain.
pub(super) async fn take(session: &Session, options: &Options) -> Result<StateDir, Error> {
    let deadline = Instant::now() + ENDING;
    let mut is_told = false;
    loop {
        let taken = StateDir::prepare(&options.state_dir, options.share(), options.dry_run)?;
        let in_use = match taken {
            Ok(state) => {
                refuse_overlap(options)?;
                return Ok(state);
            }
            Err(in_use) if !options.is_unattended() => return Err(in_use.into()),
            Err(in_use) => in_use,
        };
        if Instant::now() >= deadline {
            let waited = ENDING.as_secs();
            return Err(Error::failed(format!(
                "{in_use}, which did not end within {waited} s: wait for it to end, or stop it"
            )));
        }
        if !std::mem::replace(&mut is_told, true) {
            session.display.note(format_args!(
                "{in_use}: waiting up to {} s for it to end",
                ENDING.as_secs()
            ));
        }
        let pause = async {
            tokio::time::sleep(LOOK_AGAIN).await;
            Ok(())
        };
        session.unless_interrupted(pause).await?;
    }
}
