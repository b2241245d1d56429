//! `generate`: writes shell completions and man pages from the command line's definition, so that they
//! always agree with `--help`.
//!
//! The directory is laid out like `/usr/local/share`, where shells and `man` look for them.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::arguments::Arguments;
use crate::error::Error;

/// The name of the program.
const NAME: &str = env!("CARGO_PKG_NAME");

/// The path at which each shell looks for completions, according to bash-completion's README, zsh's
/// `$fpath` and `$__fish_vendor_completionsdirs`.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/events-backfill"),
    (Shell::Zsh, "zsh/site-functions/_events-backfill"),
    (
        Shell::Fish,
        "fish/vendor_completions.d/events-backfill.fish",
    ),
];

/// The last line of a page: the version without the commit, so that pages change only with releases.
const SOURCE: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// Writes all files into `directory`, and creates it if necessary.
///
/// # Errors
/// [`Kind::Failed`](crate::error::Kind) if a file cannot be written.
pub(super) fn run(directory: &Path) -> Result<(), Error> {
    let mut program = Arguments::command().disable_help_subcommand(true);
    for (shell, name) in COMPLETIONS {
        write(&directory.join(name), &completions(&program, shell))?;
    }
    program.build();
    let pages = directory.join("man/man1");
    let subcommands = shown_subcommands(&program).map(|subcommand| (subcommand, true));
    for (command, has_parent) in subcommands.chain([(&program, false)]) {
        let page = Page::of(command, has_parent);
        write(&pages.join(page.man.get_filename()), &page.text()?)?;
    }
    Ok(())
}

/// The subcommands that are not hidden.
fn shown_subcommands(program: &Command) -> impl Iterator<Item = &Command> {
    program.get_subcommands().filter(|it| !it.is_hide_set())
}

/// A shell's completion script, without hidden subcommands.
fn completions(program: &Command, shell: Shell) -> String {
    let mut shown = Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .args(program.get_arguments().cloned())
        .subcommands(shown_subcommands(program).cloned());
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown, NAME, &mut script);
    // With a hyphen in the program's name, clap_complete uses two names for a subcommand, and bash
    // completes nothing after it (github.com/clap-rs/clap, issue 6421).
    String::from_utf8_lossy(&script)
        .replace(&NAME.replace('-', "__subcmd__"), &NAME.replace('-', "__"))
}

/// A man page.
struct Page<'a> {
    command: &'a Command,
    man: Man,
    /// Whether it describes a subcommand.
    has_parent: bool,
}

impl<'a> Page<'a> {
    fn of(command: &'a Command, has_parent: bool) -> Self {
        // A synopsis with sixty options helps nobody: use the usage line of the help.
        let usage = command.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage:").trim_start().to_owned();
        let man = Man::new(command.clone().override_usage(usage));
        Self {
            command,
            man,
            has_parent,
        }
    }

    fn text(&self) -> Result<String, Error> {
        let mut text = Vec::new();
        self.render(&mut text)
            .map_err(|error| Error::caused("cannot make a man page", error))?;
        // clap_mangen writes two breaks for an empty line, at which mandoc warns.
        Ok(String::from_utf8_lossy(&text).replace("\n.br\n\n.br\n", "\n.sp\n"))
    }

    fn render(&self, text: &mut Vec<u8>) -> io::Result<()> {
        // The page has no date. `render_title` would omit the empty field, and `man` would show the next
        // one as the date.
        let name = self.command.get_display_name().unwrap_or(NAME);
        writeln!(text, ".TH {name} 1 \"\" \"{SOURCE}\"")?;
        self.man.render_name_section(text)?;
        self.man.render_synopsis_section(text)?;
        self.man.render_description_section(text)?;
        self.man.render_options_section(text)?;
        if self.command.has_subcommands() {
            self.man.render_subcommands_section(text)?;
        }
        let around = [
            self.command.get_before_help(),
            self.command.get_after_help(),
        ];
        for help in around.into_iter().flatten() {
            for paragraph in help.to_string().split("\n\n") {
                as_section(paragraph).to_writer(text)?;
            }
        }
        if self.has_parent {
            let mut roff = Roff::new();
            roff.control("SH", ["SEE ALSO"]);
            roff.text([bold(NAME), roman("(1)")]);
            roff.to_writer(text)?;
        }
        Ok(())
    }
}

/// Turns a paragraph of the help, such as `Examples:` and its lines, into a section with that heading,
/// line by line.
fn as_section(paragraph: &str) -> Roff {
    let (heading, rest) = paragraph.split_once([':', ',']).unwrap_or((paragraph, ""));
    let mut roff = Roff::new();
    roff.control("SH", [heading.to_uppercase().as_str()]);
    roff.control("nf", []);
    for line in rest.trim_start_matches(' ').trim_matches('\n').lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff
}

fn write(path: &Path, content: &str) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, content))
        .map_err(|error| Error::caused(format!("cannot write {}", path.display()), error))
}
