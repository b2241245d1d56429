//! `pause`, `continue` and `set`: control active runs.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::status::unreadable;
use crate::cli::setting_of_state_dir;
pub(crate) use crate::control::Command;
use crate::control::{NoAnswer, ask};
use crate::error::Error;
use crate::partition::is_of_month;
use crate::state::directory::state_roots;

/// Sends a command to all active runs in the state directory `root`, and prints their answers.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if there is no active run or `root` cannot be read;
/// [`Kind::Failed`](crate::error::Kind) if a run refuses or does not answer.
pub(crate) fn run(root: &Path, command: &Command) -> Result<(), Error> {
    let mut answered = 0;
    let mut refused = Vec::new();
    for directory in directories(root)? {
        let name = directory.strip_prefix(root).unwrap_or(&directory);
        let name = name.display();
        match ask(&directory, command) {
            Ok(state) => {
                answered += 1;
                // The run obeys even if standard output is closed.
                let _ = writeln!(std::io::stdout().lock(), "{name}: {state}");
            }
            Err(NoAnswer::NobodyThere) => {}
            Err(NoAnswer::Refused(why)) => refused.push(format!("{name}: {why}")),
        }
    }
    match (refused.is_empty(), answered) {
        (false, _) => Err(Error::failed(refused.join("; "))),
        (true, 0) => Err(Error::configuration(format!(
            "no run is active in {}: name its state directory with --state-dir",
            root.display()
        ))
        .about(setting_of_state_dir(root))),
        (true, _) => Ok(()),
    }
}

fn directories(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let paths = |root: &Path| -> std::io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(root)?;
        entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect()
    };
    let all = || -> std::io::Result<Vec<PathBuf>> {
        let of_roots = state_roots(root)?.into_iter().map(|root| paths(&root));
        Ok(of_roots.collect::<std::io::Result<Vec<_>>>()?.concat())
    };
    let mut directories = all().map_err(|error| unreadable(root, &error))?;
    // Anything else in there is not ours.
    directories.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        is_of_month(&name) && path.is_dir()
    });
    directories.sort();
    Ok(directories)
}
