//! Taking the state directories of a run.

use std::time::{Duration, Instant};

use crate::cli::options::Options;
use crate::error::Error;
use crate::session::Session;
use crate::state::directory::{PartitionDir, StateDir};

/// How long a process may take to end that somebody else has told to: longer than the inserts under
/// way, which are ended after ten seconds, and than the grace period in `deploy/`.
const ENDING: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Refuses where a process is at other shards' days that this run would do as well: as long as it loads
/// traces, nobody could tell by what it inserts.
fn refuse_overlap(options: &Options) -> Result<(), Error> {
    let own = options.share();
    let others = PartitionDir::of_partition(&options.state_dir, options.partition);
    for other in others.iter().filter(|other| other.share != own) {
        if let Some(holder) = other.holder()
            && other.share.overlaps(own)
            && !options.dry_run
        {
            return Err(Error::configuration(format!(
                "{holder} is at partition {}, which has days of {own} too: wait for it to end, or stop it",
                other.share
            )));
        }
    }
    Ok(())
}

/// Takes the state directory of a run. A run that nobody watches waits a while for the process that
/// has it: where a container is replaced, the one before may not have ended yet.
///
/// # Errors
/// Those of [`StateDir::prepare`], or who uses it; where the wait was in vain
/// [`Kind::Failed`](crate::error::Kind), since that passes.
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
                "{in_use}, which has not ended in {waited} s: wait for it to end, or name another \
                 directory with --state-dir"
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
