//! Mistakes on the command line, each in a sentence that says what to type.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use super::arguments::Arguments;
use super::shell::quoted;
use crate::error::Error;
use crate::partition::month_meant_by;

/// The program as operators type it.
const PROGRAM: &str = "events-backfill";
/// What people type for a run, which has no command.
const RUN_WORDS: [&str; 4] = ["run", "start", "backfill", "begin"];

/// Parses the command line of this process. Prints the help or the version and exits if they are asked for.
///
/// # Errors
/// [`Kind::Configuration`](crate::error::Kind) with what to type instead.
pub(crate) fn parse() -> Result<Arguments, Error> {
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    Arguments::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        _ => Error::configuration(sentence(&error, words.get(1..).unwrap_or_default())),
    })
}

/// Whether a word is the name of a command.
pub(super) fn is_command(word: &str) -> bool {
    commands().iter().any(|command| command == word)
}

/// The names of the commands.
fn commands() -> Vec<String> {
    let command = Arguments::command();
    let visible = command.get_subcommands().filter(|one| !one.is_hide_set());
    visible.map(|one| one.get_name().to_owned()).collect()
}

/// What is wrong, and what to type. `words` follow the program's name.
fn sentence(error: &clap::Error, words: &[String]) -> String {
    let context = |kind| strings(error.get(kind));
    let argument = context(ContextKind::InvalidArg).into_iter().next();
    let argument = argument.unwrap_or_default();
    let value = context(ContextKind::InvalidValue).into_iter().next();
    let command = context(ContextKind::InvalidSubcommand).into_iter().next();
    match (error.kind(), command, value) {
        (ErrorKind::ArgumentConflict, Some(command), _) => command_first(&command, words),
        (ErrorKind::ArgumentConflict, None, _) => {
            let others = context(ContextKind::PriorArg);
            let flags: Vec<&str> = [&argument]
                .into_iter()
                .chain(&others)
                .map(|it| flag(it))
                .collect();
            format!(
                "{} contradict each other: leave one of them out",
                flags.join(" and ")
            )
        }
        (ErrorKind::InvalidSubcommand, Some(command), _) => {
            no_such_command(&command, &context(ContextKind::SuggestedSubcommand))
        }
        (ErrorKind::UnknownArgument, ..) => {
            unexpected(&argument, words, &context(ContextKind::SuggestedArg))
        }
        (ErrorKind::InvalidValue, _, Some(value)) if value.is_empty() => no_value(&argument),
        (ErrorKind::InvalidValue, _, Some(value)) => {
            let valid = context(ContextKind::ValidValue).join(", ");
            format!("{} is '{value}': use {valid}", flag(&argument))
        }
        (ErrorKind::TooManyValues, _, Some(value)) => {
            format!("{argument} takes no value: leave ={value} out")
        }
        (ErrorKind::MissingRequiredArgument, ..) => {
            let missing = context(ContextKind::InvalidArg).join(" and ");
            let missing = missing.replace(['<', '>'], "");
            format!("{} needs {missing}: {}", typed(words), see_help(words))
        }
        _ => in_clap_s_words(error, words),
    }
}

fn strings(value: Option<&ContextValue>) -> Vec<String> {
    match value {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    }
}

fn command_first(command: &str, words: &[String]) -> String {
    let place = words.iter().rposition(|word| word == command);
    let others = words.iter().enumerate();
    let others = others.filter(|(index, _)| Some(*index) != place);
    let others: Vec<_> = others.map(|(_, word)| quoted(word)).collect();
    format!(
        "{command} stands after an option: put it first, `{PROGRAM} {command} {}`",
        others.join(" ")
    )
}

fn no_such_command(word: &str, similar: &[String]) -> String {
    if let Some(month) = month_meant_by(word) {
        return with_partition(word, &month);
    }
    if RUN_WORDS.contains(&word) {
        return format!(
            "there is no command '{word}', since a run needs none: type `{PROGRAM} --partition 202406`"
        );
    }
    let what_to_type = match similar {
        [] => format!(
            "use {}, or none for a run, as in `{PROGRAM} --partition 202406`",
            commands().join(", ")
        ),
        similar => format!("did you mean {}?", similar.join(" or ")),
    };
    format!("there is no command '{word}': {what_to_type}")
}

fn with_partition(word: &str, month: &str) -> String {
    format!("unexpected argument '{word}': name a month with --partition {month}")
}

fn unexpected(argument: &str, words: &[String], similar: &[String]) -> String {
    let problem = format!("unexpected argument '{argument}'");
    if let Some(month) = month_meant_by(argument) {
        return with_partition(argument, &month);
    }
    if argument.contains("password") {
        // Every user of the machine sees the command line.
        return format!(
            "{problem}: set CLICKHOUSE_PASSWORD, or name a file that holds the password in \
             CLICKHOUSE_PASSWORD_FILE"
        );
    }
    match similar {
        [] => format!("{problem}: {}", see_help(words)),
        similar => format!("{problem}: did you mean {}?", similar.join(" or ")),
    }
}

/// The flag of an argument as the usage has it, `--partition <YYYYMM>`.
fn flag(argument: &str) -> &str {
    argument.split(' ').next().unwrap_or(argument)
}

fn no_value(argument: &str) -> String {
    let flag = flag(argument);
    let example = match flag {
        "--partition" => "--partition 202406".to_owned(),
        _ => argument.replace(['<', '>'], ""),
    };
    format!("{flag} needs a value: write {example}")
}

/// The command that was typed, with the program.
fn typed(words: &[String]) -> String {
    match words.first().filter(|word| is_command(word)) {
        Some(command) => format!("{PROGRAM} {command}"),
        None => PROGRAM.to_owned(),
    }
}

fn see_help(words: &[String]) -> String {
    format!("`{} --help` lists the options", typed(words))
}

/// The first line of what clap says.
fn in_clap_s_words(error: &clap::Error, words: &[String]) -> String {
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.trim_start_matches("error: ");
    format!("{first}: {}", see_help(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> String {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let all = std::iter::once(PROGRAM.to_owned()).chain(words.clone());
        sentence(&Arguments::try_parse_from(all).unwrap_err(), &words)
    }

    #[test]
    fn the_usual_mistakes_are_told_with_what_to_type() {
        for (line, expected) in [
            (
                "--partition 202406 verify",
                "verify stands after an option: put it first, `events-backfill verify --partition 202406`",
            ),
            (
                "verify --partition",
                "--partition needs a value: write --partition 202406",
            ),
            (
                "--state-dir",
                "--state-dir needs a value: write --state-dir DIR",
            ),
            ("verfy", "there is no command 'verfy': did you mean verify?"),
            (
                "xyzzy",
                "there is no command 'xyzzy': use verify, repair, plan, status, report, pause, continue, \
                 set, or none for a run, as in `events-backfill --partition 202406`",
            ),
            (
                "run --partition 202406",
                "there is no command 'run', since a run needs none: type `events-backfill --partition \
                 202406`",
            ),
            (
                "202406",
                "unexpected argument '202406': name a month with --partition 202406",
            ),
            (
                "verify 2024-06",
                "unexpected argument '2024-06': name a month with --partition 202406",
            ),
            (
                "--partitions 202406",
                "unexpected argument '--partitions': did you mean --partition?",
            ),
            (
                "status --xyzzy",
                "unexpected argument '--xyzzy': `events-backfill status --help` lists the options",
            ),
            (
                "--password secret",
                "unexpected argument '--password': set CLICKHOUSE_PASSWORD, or name a file that holds the \
                 password in CLICKHOUSE_PASSWORD_FILE",
            ),
            (
                "--partition 202406 --resume --restart",
                "--resume and --restart contradict each other: leave one of them out",
            ),
            ("--dry-run=no", "--dry-run takes no value: leave =no out"),
            ("--only roots", "--only is 'roots': use root-spans"),
            (
                "report",
                "events-backfill report needs --html FILE: `events-backfill report --help` lists the \
                 options",
            ),
        ] {
            assert_eq!(told(line), expected, "{line}");
        }
    }
}
