//! The options of a run that its verify needs too, as an operator types them.

use crate::cli::arguments::RunArguments;
use crate::cli::shell::quoted;

/// The options of this command line that decide what verify compares, and where: each with a space before
/// it. Those of the environment and of `.env` are not among them, since verify reads them itself.
pub(super) fn options_of_verify(arguments: &RunArguments) -> String {
    let subject = &arguments.subject;
    let flags = [
        ("--root-spans", subject.root_spans),
        ("--no-root-spans", subject.no_root_spans),
        ("--experiments", subject.experiments),
        ("--no-experiments", subject.no_experiments),
        ("--exclude-dataset-items", subject.exclude_dataset_items),
        ("--no-trace-metadata", subject.no_trace_metadata),
        ("--no-remote-lookup", subject.no_remote_lookup),
        ("--local-tables", subject.local_tables),
        (
            "--dangerously-accept-invalid-certificates",
            subject.dangerously_accept_invalid_certificates,
        ),
    ];
    let state_dir = arguments.state_dir.as_ref();
    let state_dir = state_dir.map(|path| path.to_string_lossy().into_owned());
    let values = [
        ("--target-table", &subject.target_table),
        ("--trace-margin-days", &subject.trace_margin_days),
        ("--until", &subject.until),
        ("--state-dir", &state_dir),
    ];
    let mut text = String::new();
    for (name, value) in values {
        if let Some(value) = value {
            text.push_str(&format!(" {name} {}", quoted(value)));
        }
    }
    for (name, _) in flags.into_iter().filter(|(_, is_given)| *is_given) {
        text.push(' ');
        text.push_str(name);
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::arguments::Arguments;

    #[test]
    fn verify_gets_the_options_of_the_run_that_decide_what_it_compares() {
        for (run, verify) in [
            (
                &["--partition", "202406", "--resume", "--concurrency", "2"][..],
                "",
            ),
            (
                &["--target-table", "mine", "--no-root-spans"],
                " --target-table mine --no-root-spans",
            ),
            (
                &[
                    "--until",
                    "2026-11-26 21:00:00",
                    "--state-dir",
                    "/it's here",
                ],
                r" --until '2026-11-26 21:00:00' --state-dir '/it'\''s here'",
            ),
            (
                &["--no-remote-lookup", "--trace-margin-days=3"],
                " --trace-margin-days 3 --no-remote-lookup",
            ),
        ] {
            let arguments = std::iter::once(&"events-backfill").chain(run);
            let arguments = Arguments::parse_from(arguments).run;
            assert_eq!(options_of_verify(&arguments), verify);
        }
    }

    #[test]
    fn verify_knows_each_option_that_it_is_given() {
        let every = [
            "events-backfill",
            "verify",
            "--target-table",
            "a",
            "--trace-margin-days",
            "1",
            "--until",
            "x",
            "--state-dir",
            "y",
            "--root-spans",
            "--experiments",
            "--exclude-dataset-items",
            "--no-trace-metadata",
            "--no-remote-lookup",
            "--local-tables",
            "--dangerously-accept-invalid-certificates",
        ];
        assert!(Arguments::try_parse_from(every).is_ok());
        let opposite = [
            "events-backfill",
            "verify",
            "--no-root-spans",
            "--no-experiments",
        ];
        assert!(Arguments::try_parse_from(opposite).is_ok());
    }
}
