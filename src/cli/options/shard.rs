//! This process's share of the days, if several processes divide a month.

use crate::cli::Environment;
use crate::error::Error;
use crate::partition::Shard;

/// Set by Kubernetes in each pod of an Indexed Job, counted from 0.
const INDEX: &str = "JOB_COMPLETION_INDEX";
/// The number of pods. The manifest has to set it, since Kubernetes does not.
const COMPLETIONS: &str = "JOB_COMPLETIONS";

/// The shard from the command line, or else `SHARD`, or else the pod's index in a Kubernetes Indexed
/// Job. `None` without any of these: one process works on all days.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) if a value is invalid or only half of the Job's variables
/// are set: a pod that took all days would repeat the work of all the others.
pub(crate) fn shard_of(
    argument: Option<&str>,
    environment: &Environment,
) -> Result<Option<Shard>, Error> {
    let parse = |name: &str, text: &str| {
        let shard = text.parse::<Shard>();
        shard.map_err(|error| Error::configuration(format!("{name}: {error}")))
    };
    if let Some(text) = argument {
        return parse("--shard", text).map(Some);
    }
    if let Some(text) = environment.get("SHARD") {
        return parse("SHARD", text).map(Some);
    }
    match (environment.get(INDEX), environment.get(COMPLETIONS)) {
        (None, None) => Ok(None),
        (Some(index), Some(completions)) => of_pod(index, completions).map(Some),
        (Some(index), None) => Err(Error::configuration(format!(
            "{INDEX} is {index}, but {COMPLETIONS} is not set: set it to the Kubernetes Job's \
             spec.completions, or use --shard"
        ))),
        (None, Some(completions)) => Err(Error::configuration(format!(
            "{COMPLETIONS} is {completions}, but {INDEX} is not set: set the Kubernetes Job's \
             spec.completionMode to Indexed, or use --shard"
        ))),
    }
}

fn of_pod(index: &str, completions: &str) -> Result<Shard, Error> {
    let number = |name: &str, text: &str| {
        text.parse::<u16>()
            .map_err(|_| Error::configuration(format!("{name} is '{text}': use a whole number")))
    };
    let (index, completions) = (number(INDEX, index)?, number(COMPLETIONS, completions)?);
    Shard::new(index.saturating_add(1), completions).map_err(|error| {
        Error::configuration(format!(
            "{INDEX} is {index} (counted from 0) and {COMPLETIONS} is {completions}: {error}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(argument: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<String>, Error> {
        let shard = shard_of(argument, &Environment::of(variables))?;
        Ok(shard.map(|shard| shard.to_string()))
    }

    #[test]
    fn a_pod_of_an_indexed_job_is_a_shard_and_the_command_line_counts_first() {
        let job = [(INDEX, "0"), (COMPLETIONS, "8")];
        let with_variable = [job[0], job[1], ("SHARD", "2/4")];
        assert_eq!(shard(None, &[]), Ok(None));
        assert_eq!(shard(None, &job), Ok(Some("1/8".to_owned())));
        assert_eq!(shard(None, &with_variable), Ok(Some("2/4".to_owned())));
        assert_eq!(
            shard(Some("3/8"), &with_variable),
            Ok(Some("3/8".to_owned()))
        );
        let last = [(INDEX, "7"), (COMPLETIONS, "8")];
        assert_eq!(shard(None, &last), Ok(Some("8/8".to_owned())));
    }

    #[test]
    fn half_of_what_tells_the_shard_is_refused_with_what_is_missing() {
        for (variables, word) in [
            (&[(INDEX, "3")][..], COMPLETIONS),
            (&[(COMPLETIONS, "8")], "completionMode"),
            (&[(INDEX, "8"), (COMPLETIONS, "8")], "counted from 0"),
            (&[(INDEX, "three"), (COMPLETIONS, "8")], "three"),
            (&[(INDEX, "65535"), (COMPLETIONS, "8")], "no shard"),
            (&[(INDEX, "0"), (COMPLETIONS, "100")], "1 to 28"),
            (&[("SHARD", "9/8")], "SHARD"),
        ] {
            let error = shard(None, variables).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{variables:?}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
