//! Prints docs/reference.md, made from the program's own words: flags and variables from its command line,
//! fields of reports from the doc comments of what is serialized, metrics from where they are registered.
//!
//! `make reference` renews the file, and `tests/integration/reference.rs` fails where that is due.
//! The sources are read when this runs, so that the program need not carry them.

#![allow(clippy::missing_docs_in_private_items, missing_docs, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use clap::{Arg, Command, CommandFactory};
use events_backfill::internals::{Arguments, VARIABLES};
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ExprCall, ExprMethodCall, Fields, Item, Lit, Meta, Token, Type};

type Failure = Box<dyn Error>;

const BEGINNING: &str = "\
# Reference

<!-- Made from the code by `make reference`. Change the code, not this file. -->

Every command, option, variable, exit code, report field and metric.

- [Commands](#commands)
- [Options of a run](#options-of-a-run)
- [Options of the other commands](#options-of-the-other-commands)
- [Variables without an option](#variables-without-an-option)
- [Exit codes](#exit-codes)
- [Reports](#reports)
- [Metrics](#metrics)

## Commands

Without a command, `events-backfill` runs a backfill.

";

const OPTIONS: &str = "\
## Options of a run

An option on the command line counts before its variable in the environment, and that before the same variable in a
file `.env` in the current directory. An empty variable counts as not set. `.env` may be one that other programs share:
lines that name none of these variables are ignored. A variable of a switch takes `true` or `false`.

Sizes are numbers with a unit: `512MiB`, `4GiB`.
";

const OTHER_OPTIONS: &str = "\
## Options of the other commands

What an option of the same name does in a run is not repeated.

";

const VARIABLES_ALONE: &str = "\
## Variables without an option

From the environment or `.env` only.

";

const EXIT_CODES: &str = "\
## Exit codes

| code | meaning |
| --- | --- |
| 0 | done: all months; for `verify`, all are equal |
| 1 | failed: at least one month; for `verify`, it differs; for `repair`, something is left |
| 2 | the command line, the environment or what they point at is wrong; nothing was written |
| 129, 130, 143 | interrupted by SIGHUP, SIGINT (Ctrl-C) or SIGTERM, after a clean checkpoint |

";

const REPORTS: &str = "\
## Reports

`--report FILE` writes the summary as JSON. An existing file is replaced as a whole and keeps its mode, a link is
followed, a device or a pipe is written to, and `-` is standard output, which has nothing else with `--quiet`.

A month that is named alone gives the report of that month. Several months give `{\"partitions\": [\u{2026}]}`, for `verify`,
`repair` and `plan` with the report of each, or with `partition` and `error` where there is none. Each month's own
report of a run is also kept in `STATE_DIR/<partition>/report.json`.

With `--log-format json`, each line on standard error is an object with `time`, `level` (`info`, `warning` or `error`)
and `message`; lines about progress also have `phase`, `rows`, `rows_total` and `rows_per_second`. With
`--all-shards`, each line has `shard`. What is wrong with the command line itself is always said in words.

";

const METRICS: &str = "\
## Metrics

A run with `--metrics-listen ADDRESS` serves them at `/metrics`, in the format of OpenMetrics. `/healthz` answers 200 as
long as the process works, `/readyz` while it works on a month.
[deploy/grafana-dashboard.json](../deploy/grafana-dashboard.json) shows them.

";

fn main() -> Result<(), Failure> {
    let mut program = Arguments::command().disable_help_subcommand(true);
    program.build();
    let mut text = BEGINNING.to_owned();
    commands(&mut text, &program)?;
    options(&mut text, &program)?;
    variables_alone(&mut text, &program)?;
    text.push_str(EXIT_CODES);
    text.push_str(REPORTS);
    reports(&mut text)?;
    text.push_str(METRICS);
    metrics(&mut text)?;
    print!("{}", text.trim_end().to_owned() + "\n");
    Ok(())
}

// -------------------------------------------------------------------------------------------------
// The command line
// -------------------------------------------------------------------------------------------------

fn shown(program: &Command) -> impl Iterator<Item = &Command> {
    program.get_subcommands().filter(|it| !it.is_hide_set())
}

fn commands(text: &mut String, program: &Command) -> Result<(), Failure> {
    writeln!(text, "| command | what it does |\n| --- | --- |")?;
    for command in shown(program) {
        let about = command.get_about().map(ToString::to_string);
        let about = cell(&about.unwrap_or_default());
        writeln!(text, "| `{}` | {about} |", command.get_name())?;
    }
    writeln!(text)?;
    Ok(())
}

/// What the help says of an option, taken apart.
struct Words {
    flag: String,
    variable: String,
    default: String,
    meaning: String,
}

impl Words {
    fn of(argument: &Arg) -> Self {
        let help = argument.get_long_help().or(argument.get_help());
        let help = flat(&help.map(ToString::to_string).unwrap_or_default());
        let (help, variable) = taken(&help, "[env: ");
        let (meaning, default) = taken(&help, "[default: ");
        let values = argument.get_value_names().unwrap_or_default();
        let takes_value = argument.get_action().takes_values();
        let value = values.first().filter(|_| takes_value);
        let mut flag = match argument.get_long() {
            Some(long) => format!("--{long}"),
            None => String::new(),
        };
        if let Some(value) = value {
            flag = format!("{flag} {value}").trim_start().to_owned();
        }
        let mut meaning = meaning.trim().to_owned();
        let choices = argument.get_possible_values();
        if takes_value && !choices.is_empty() {
            let names = choices
                .iter()
                .map(|choice| format!("`{}`", choice.get_name()));
            meaning = format!("{meaning}: {}", names.collect::<Vec<_>>().join(", "));
        }
        Self {
            flag,
            variable,
            default,
            meaning,
        }
    }

    fn row(&self) -> String {
        format!(
            "| `{}` | {} | {} | {} |",
            self.flag.replace('|', "\\|"),
            names_in_code(&self.variable),
            cell(&self.default),
            cell(&self.meaning)
        )
    }
}

/// A text without what stands between `start` and the next bracket, and that.
fn taken(text: &str, start: &str) -> (String, String) {
    let found = text.split_once(start);
    let Some((before, (inside, after))) =
        found.and_then(|(before, rest)| Some((before, rest.split_once(']')?)))
    else {
        return (text.to_owned(), String::new());
    };
    (format!("{}{after}", before.trim_end()), inside.to_owned())
}

fn options(text: &mut String, program: &Command) -> Result<(), Failure> {
    text.push_str(OPTIONS);
    let mut headings: Vec<&str> = Vec::new();
    let arguments: Vec<&Arg> = program.get_arguments().filter(|it| is_ours(it)).collect();
    for argument in &arguments {
        let heading = argument.get_help_heading().unwrap_or("Others");
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    let mut known = BTreeMap::new();
    for heading in headings {
        writeln!(text, "\n### {heading}\n")?;
        writeln!(
            text,
            "| option | variable | default | meaning |\n| --- | --- | --- | --- |"
        )?;
        let of_heading = |it: &&&Arg| it.get_help_heading().unwrap_or("Others") == heading;
        for argument in arguments.iter().filter(of_heading) {
            let words = Words::of(argument);
            writeln!(text, "{}", words.row())?;
            known.insert(argument.get_id().to_string(), words);
        }
    }
    writeln!(text, "\n{OTHER_OPTIONS}")?;
    let end = text.trim_end().len();
    text.truncate(end);
    for command in shown(program) {
        writeln!(text, "\n\n### {}\n", command.get_name())?;
        let (mut same, mut own) = (Vec::new(), Vec::new());
        for argument in command.get_arguments().filter(|it| is_ours(it)) {
            let words = Words::of(argument);
            match known.get(argument.get_id().as_str()) {
                Some(of_run) if of_run.meaning == words.meaning => {
                    same.push(format!(
                        "`{}`",
                        of_run.flag.split(' ').next().unwrap_or_default()
                    ));
                }
                _ => own.push(words.row()),
            }
        }
        if !own.is_empty() {
            writeln!(
                text,
                "| option | variable | default | meaning |\n| --- | --- | --- | --- |"
            )?;
            writeln!(text, "{}", own.join("\n"))?;
        }
        if !same.is_empty() {
            let gap = if own.is_empty() { "" } else { "\n" };
            writeln!(text, "{gap}As in a run: {}.", same.join(", "))?;
        }
        let end = text.trim_end().len();
        text.truncate(end);
    }
    text.push_str("\n\n");
    Ok(())
}

/// Not clap's own.
fn is_ours(argument: &Arg) -> bool {
    !argument.is_hide_set() && !matches!(argument.get_id().as_str(), "help" | "version")
}

/// Variables that no option names, as the end of the help has them: a name, then words, on the next lines too.
fn variables_alone(text: &mut String, program: &Command) -> Result<(), Failure> {
    text.push_str(VARIABLES_ALONE);
    writeln!(
        text,
        "| variable | default | meaning |\n| --- | --- | --- |"
    )?;
    let help = program.get_after_help().map(ToString::to_string);
    let help = help.unwrap_or_default();
    let mut found: Vec<(String, String)> = Vec::new();
    for line in help.lines() {
        let Some(line) = line.strip_prefix("  ") else {
            continue;
        };
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (VARIABLES.contains(&name), found.last_mut()) {
            (true, _) => found.push((name.to_owned(), rest.trim().to_owned())),
            (false, Some(last)) => last.1 = format!("{} {}", last.1, line.trim()),
            (false, None) => {}
        }
    }
    let mut explained = named_by_options(program);
    for (name, words) in &found {
        let (meaning, default) = taken(words, "[default: ");
        explained.insert(name.clone());
        explained.extend(variables_in(&meaning));
        writeln!(
            text,
            "| `{name}` | {} | {} |",
            cell(&default),
            cell(meaning.trim())
        )?;
    }
    writeln!(text)?;
    let unexplained: Vec<_> = VARIABLES
        .iter()
        .filter(|it| !explained.contains(**it))
        .collect();
    if !unexplained.is_empty() {
        return Err(format!("the help does not explain {unexplained:?}").into());
    }
    Ok(())
}

fn named_by_options(program: &Command) -> BTreeSet<String> {
    let arguments = program.get_arguments().map(Words::of);
    arguments
        .flat_map(|words| variables_in(&words.variable))
        .collect()
}

fn variables_in(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| VARIABLES.contains(word));
    ours.map(str::to_owned).collect()
}

/// The names of variables among words, as code.
fn names_in_code(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let bare = word.trim_end_matches(',');
        match VARIABLES.contains(&bare) {
            true => word.replace(bare, &format!("`{bare}`")),
            false => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A text as it stands in a table: options and what is in angle brackets as code.
fn cell(text: &str) -> String {
    let text = flat(text).replace('|', "\\|");
    let words = text.split(' ').map(|word| {
        let bare = word.trim_matches(|c: char| matches!(c, '(' | ')' | ',' | ';' | ':' | '.'));
        let is_code = bare.starts_with("--") || bare.starts_with('<') || bare.contains("-<");
        match is_code && !word.contains('`') {
            true => word.replace(bare, &format!("`{bare}`")),
            false => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

// -------------------------------------------------------------------------------------------------
// What is serialized
// -------------------------------------------------------------------------------------------------

/// A report: how it is asked for, and what it is made of.
struct Described {
    title: &'static str,
    how: &'static str,
    file: &'static str,
    name: &'static str,
}

const DESCRIBED: [Described; 6] = [
    Described {
        title: "A run of one month",
        how: "`--report FILE` of a run, and `STATE_DIR/<partition>/report.json`.",
        file: "src/state/report.rs",
        name: "Report",
    },
    Described {
        title: "A run of several months",
        how: "`--report FILE` of a run. In `totals`, what has no explanation is the sum over the months.",
        file: "src/commands/run_summary.rs",
        name: "Summary",
    },
    Described {
        title: "The report of verify",
        how: "`verify --report FILE`.",
        file: "src/verify/report.rs",
        name: "Report",
    },
    Described {
        title: "The report of repair",
        how: "`repair --report FILE`.",
        file: "src/repair/report.rs",
        name: "Report",
    },
    Described {
        title: "A plan",
        how: "`plan --json`, and `plan --report FILE`.",
        file: "src/plan/summary.rs",
        name: "Forecast",
    },
    Described {
        title: "The status",
        how: "`status --json`.",
        file: "src/commands/status.rs",
        name: "All",
    },
];

/// Where the types are that others have fields of.
const FILES: [&str; 16] = [
    "src/clickhouse/sizes.rs",
    "src/commands/partition_status.rs",
    "src/commands/run_summary.rs",
    "src/commands/sharded_months.rs",
    "src/commands/status.rs",
    "src/plan/disk.rs",
    "src/plan/engines.rs",
    "src/plan/sample.rs",
    "src/plan/summary.rs",
    "src/plan/time.rs",
    "src/repair/optimize.rs",
    "src/repair/pieces.rs",
    "src/repair/report.rs",
    "src/state/report.rs",
    "src/throttle/state.rs",
    "src/verify/examples.rs",
];

/// All serialized types, by file and name.
type Types = BTreeMap<(&'static str, String), Item>;

fn read(file: &str) -> Result<String, Failure> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(path).map_err(|error| format!("{file} cannot be read: {error}").into())
}

struct Found {
    file: &'static str,
    types: Types,
}

impl<'ast> Visit<'ast> for Found {
    // Those inside of functions too.
    fn visit_item(&mut self, item: &'ast Item) {
        let named = match item {
            Item::Struct(it) => Some((&it.ident, &it.attrs)),
            Item::Enum(it) => Some((&it.ident, &it.attrs)),
            _ => None,
        };
        if let Some((name, attributes)) = named
            && derives_serialize(attributes)
        {
            let key = (self.file, name.to_string());
            self.types.insert(key, item.clone());
        }
        visit::visit_item(self, item);
    }
}

fn derives_serialize(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("derive")
            && matches!(&attribute.meta, Meta::List(list) if list.tokens.to_string().contains("Serialize"))
    })
}

/// The words of `#[serde(…)]`.
fn serde_words(attributes: &[Attribute]) -> String {
    let words = attributes.iter().filter_map(|it| match &it.meta {
        Meta::List(list) if it.path().is_ident("serde") => Some(list.tokens.to_string()),
        _ => None,
    });
    words.collect::<Vec<_>>().join(",")
}

fn doc(attributes: &[Attribute]) -> String {
    let lines = attributes
        .iter()
        .filter_map(|attribute| match &attribute.meta {
            Meta::NameValue(it) if attribute.path().is_ident("doc") => match &it.value {
                Expr::Lit(literal) => match &literal.lit {
                    Lit::Str(text) => Some(text.value().trim().to_owned()),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        });
    let text = lines.collect::<Vec<_>>().join("\n");
    flat(text.split("\n\n").next().unwrap_or_default())
}

fn reports(text: &mut String) -> Result<(), Failure> {
    let mut types = Types::new();
    for file in FILES {
        let mut found = Found { file, types };
        found.visit_file(&syn::parse_file(&read(file)?)?);
        types = found.types;
    }
    // The file that is described may be none of those.
    for described in &DESCRIBED {
        let mut found = Found {
            file: described.file,
            types,
        };
        found.visit_file(&syn::parse_file(&read(described.file)?)?);
        types = found.types;
    }
    let mut flattened = None;
    for described in &DESCRIBED {
        writeln!(text, "### {}\n\n{}\n", described.title, described.how)?;
        writeln!(text, "| field | type | meaning |\n| --- | --- | --- |")?;
        let mut rows = Rows {
            types: &types,
            lines: Vec::new(),
            flattened: Vec::new(),
        };
        rows.add(described.file, described.name, "")?;
        writeln!(text, "{}\n", rows.lines.join("\n"))?;
        for prefix in rows.flattened {
            writeln!(
                text,
                "`{prefix}` also has every field of [a run of one month](#a-run-of-one-month).\n"
            )?;
            flattened = Some(prefix);
        }
    }
    let reasons = names_of_reasons()?;
    writeln!(
        text,
        "Reasons in `throttled_seconds`, here and in the metrics: {}.\n",
        reasons.join(", ")
    )?;
    flattened
        .map(drop)
        .ok_or_else(|| "no report of several months was found".into())
}

struct Rows<'a> {
    types: &'a Types,
    lines: Vec<String>,
    flattened: Vec<String>,
}

impl<'a> Rows<'a> {
    fn add(&mut self, file: &str, name: &str, prefix: &str) -> Result<(), Failure> {
        let item = self
            .find(file, name)
            .ok_or_else(|| format!("{file} has no {name}"))?;
        let ((file, _), Item::Struct(item)) = item else {
            return Err(format!("{name} is no struct").into());
        };
        let (file, Fields::Named(fields)) = (*file, &item.fields) else {
            return Err(format!("{name} has no fields with names").into());
        };
        for field in &fields.named {
            let words = serde_words(&field.attrs);
            let name = field
                .ident
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            if words.contains("flatten") {
                self.flattened.push(prefix.trim_end_matches('.').to_owned());
                continue;
            }
            if words.split(',').any(|word| word.trim() == "skip") {
                continue;
            }
            let shape = Shape::of(&field.ty);
            let inner = self.find(file, &shape.name);
            let mut meaning = doc(&field.attrs);
            let of_variants = match inner {
                Some((_, Item::Enum(choice))) => Some(variants(choice)),
                _ => None,
            };
            if let Some(all) = &of_variants {
                meaning = format!("{meaning} {all}").trim().to_owned();
            }
            let path = format!("{prefix}{name}");
            let kind = shape.words(of_variants.is_some());
            self.lines
                .push(format!("| `{path}` | {kind} | {} |", cell(&meaning)));
            if let Some(((place, inner), Item::Struct(_))) = inner {
                let (place, inner) = (*place, inner.clone());
                let list = if shape.is_list { "[]" } else { "" };
                self.add(place, &inner, &format!("{path}{list}."))?;
            }
        }
        Ok(())
    }

    /// A type of the same file, or the one of that name in the others.
    fn find(&self, file: &str, name: &str) -> Option<(&'a (&'static str, String), &'a Item)> {
        let mut named = self.types.iter().filter(|((_, other), _)| other == name);
        let all: Vec<_> = named.by_ref().collect();
        let here = all.iter().find(|((place, _), _)| *place == file);
        here.or(all.first()).copied()
    }
}

fn variants(choice: &syn::ItemEnum) -> String {
    let is_snake = serde_words(&choice.attrs).contains("snake_case");
    let all = choice.variants.iter().map(|variant| {
        let name = variant.ident.to_string();
        let name = if is_snake { snake_case(&name) } else { name };
        let meaning = doc(&variant.attrs);
        format!("`{name}`: {}", meaning.trim_end_matches('.'))
    });
    all.collect::<Vec<_>>().join("; ") + "."
}

fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// A type as JSON has it.
struct Shape {
    name: String,
    is_list: bool,
    is_map: bool,
    may_be_null: bool,
}

impl Shape {
    fn of(ty: &Type) -> Self {
        let mut shape = Shape {
            name: String::new(),
            is_list: false,
            is_map: false,
            may_be_null: false,
        };
        shape.look_at(ty);
        shape
    }

    fn look_at(&mut self, ty: &Type) {
        match ty {
            Type::Reference(it) => self.look_at(&it.elem),
            Type::Slice(it) => {
                self.is_list = true;
                self.look_at(&it.elem);
            }
            Type::Path(it) => {
                let Some(last) = it.path.segments.last() else {
                    return;
                };
                self.name = last.ident.to_string();
                let inner = match &last.arguments {
                    syn::PathArguments::AngleBracketed(it) => it.args.last(),
                    _ => None,
                };
                match self.name.as_str() {
                    "Option" => self.may_be_null = true,
                    "Vec" => self.is_list = true,
                    "BTreeMap" => self.is_map = true,
                    _ => return,
                }
                if let Some(syn::GenericArgument::Type(inner)) = inner {
                    self.look_at(inner);
                }
            }
            _ => {}
        }
    }

    fn words(&self, is_choice: bool) -> String {
        let one = match self.name.as_str() {
            "String" | "str" => "text",
            "bool" => "true or false",
            "Moment" => "date and time, UTC",
            _ if is_choice => "text",
            "u8" | "u16" | "u32" | "u64" | "usize" | "i64" | "f64" => "number",
            _ => "object",
        };
        let one = match (self.is_list, self.is_map) {
            (true, _) => format!("list ({one})"),
            (_, true) => format!("object ({one} by name)"),
            _ => one.to_owned(),
        };
        match self.may_be_null {
            true => format!("{one}, or null"),
            false => one,
        }
    }
}

// -------------------------------------------------------------------------------------------------
// Metrics
// -------------------------------------------------------------------------------------------------

/// What the function `name` of an enum gives, arm by arm.
struct Arms {
    function: &'static str,
    found: Vec<String>,
}

impl<'ast> Visit<'ast> for Arms {
    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if function.sig.ident == self.function {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        self.found.extend(text_of(&arm.body));
    }
}

fn names_of_reasons() -> Result<Vec<String>, Failure> {
    let mut arms = Arms {
        function: "name",
        found: Vec::new(),
    };
    arms.visit_file(&syn::parse_file(&read("src/throttle/reason.rs")?)?);
    match arms.found.is_empty() {
        true => Err("src/throttle/reason.rs has no names of reasons".into()),
        false => Ok(arms.found.iter().map(|name| format!("`{name}`")).collect()),
    }
}

fn text_of(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}

/// The metrics that are made in a file: `Metric::counter("name", "help")`, perhaps with `.by("label", …)`.
#[derive(Default)]
struct Metrics {
    /// Name, kind, help.
    found: Vec<(String, &'static str, String)>,
    /// Label by metric.
    labels: BTreeMap<String, Vec<String>>,
}

/// Name, kind and help, where a call makes a metric.
fn metric_of(call: &ExprCall) -> Option<(String, &'static str, String)> {
    let Expr::Path(path) = &*call.func else {
        return None;
    };
    let names: Vec<_> = path
        .path
        .segments
        .iter()
        .map(|it| it.ident.to_string())
        .collect();
    let kind = match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["Metric", "counter"] => "counter",
        ["Metric", "gauge"] => "gauge",
        _ => return None,
    };
    let (name, help) = (call.args.first()?, call.args.get(1)?);
    Some((text_of(name)?, kind, text_of(help)?))
}

/// The metric at the beginning of a chain of calls.
fn metric_in(expression: &Expr) -> Option<(String, &'static str, String)> {
    match expression {
        Expr::Call(call) => metric_of(call),
        Expr::MethodCall(call) => metric_in(&call.receiver),
        _ => None,
    }
}

impl<'ast> Visit<'ast> for Metrics {
    fn visit_item_mod(&mut self, _: &'ast syn::ItemMod) {
        // Tests have none of their own.
    }

    // What is in a `vec!` has to be read as what it will be.
    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        let parser = Punctuated::<Expr, Token![,]>::parse_terminated;
        if let Ok(expressions) = mac.parse_body_with(parser) {
            let mut inner = Metrics::default();
            for expression in &expressions {
                inner.visit_expr(expression);
            }
            self.found.extend(inner.found);
            self.labels.extend(inner.labels);
        }
    }

    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        self.found.extend(metric_of(call));
        if let Expr::Path(path) = &*call.func
            && path.path.is_ident("by_source")
            && let Some((name, ..)) = call.args.first().and_then(metric_in)
        {
            self.labels.insert(name, vec!["source".to_owned()]);
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        if call.method == "by"
            && let (Some((name, ..)), Some(label)) = (
                metric_in(&call.receiver),
                call.args.first().and_then(text_of),
            )
        {
            self.labels.insert(name, vec![label]);
        }
        visit::visit_expr_method_call(self, call);
    }
}

fn metrics(text: &mut String) -> Result<(), Failure> {
    let mut metrics = Metrics::default();
    metrics.visit_file(&syn::parse_file(&read("src/telemetry/metrics.rs")?)?);
    if metrics.found.is_empty() {
        return Err("src/telemetry/metrics.rs has no metrics".into());
    }
    let month = vec!["partition".to_owned(), "target".to_owned()];
    metrics.labels.insert("month".to_owned(), month);
    writeln!(
        text,
        "| metric | kind | labels | meaning |\n| --- | --- | --- | --- |"
    )?;
    for (name, kind, help) in &metrics.found {
        let end = if *kind == "counter" { "_total" } else { "" };
        let labels = metrics.labels.get(name).map_or(&[][..], Vec::as_slice);
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(
            text,
            "| `events_backfill_{name}{end}` | {kind} | {} | {} |",
            labels.join(", "),
            cell(help)
        )?;
    }
    Ok(())
}
