//! What belongs to a package beside the program: where it is from, completions, man pages.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::{Tool, repository_file};

/// The words that are subcommands.
const SUBCOMMANDS: [&str; 8] = [
    "verify", "repair", "plan", "status", "report", "pause", "continue", "set",
];

/// Runs a program that has to be there, and gives what it prints.
#[track_caller]
fn output<A: AsRef<OsStr>>(
    command: &mut Command,
    arguments: impl IntoIterator<Item = A>,
) -> String {
    let name = command.get_program().to_owned();
    let output = command.args(arguments).output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "{name:?} cannot be run ({error}); scripts/install-prerequisites.sh --tests installs it"
        )
    });
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (printed, said) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{name:?}: {printed}{said}");
    printed
}

// -------------------------------------------------------------------------------------------------
// Where the program is from
// -------------------------------------------------------------------------------------------------

fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut git = Command::new("git");
    git.current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .args(["-c", "user.name=Test", "-c", "user.email=test@localhost"]);
    output(&mut git, arguments).trim().to_owned()
}

/// The real build script, in a package of its own.
struct Package {
    directory: TempDir,
    script: PathBuf,
}

impl Package {
    fn new() -> Package {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("build-script");
        let source = repository_file("build.rs");
        let mut rustc = Command::new("rustc");
        rustc.arg(source).arg("-o").arg(&script);
        output(&mut rustc, ["--edition", "2024"]);
        let package = Package { directory, script };
        fs::create_dir_all(package.root().join("src")).unwrap();
        fs::write(package.root().join("src/main.rs"), "fn main() {}\n").unwrap();
        fs::write(package.root().join("README.md"), "Nothing yet.\n").unwrap();
        package
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("outer/package")
    }

    fn is_in_git(&self, root: &Path) -> String {
        git(root, &["init", "--quiet"]);
        git(root, &["add", "."]);
        self.commit(root)
    }

    /// Commits, and gives the commit's first seven digits.
    fn commit(&self, root: &Path) -> String {
        git(
            root,
            &[
                "commit",
                "--quiet",
                "--all",
                "--allow-empty",
                "--message=More",
            ],
        );
        git(root, &["rev-parse", "HEAD"])[..7].to_owned()
    }

    fn script(&self, source_commit: &str) -> Command {
        let mut script = Command::new(&self.script);
        script
            .current_dir(self.root())
            .env("CARGO_PKG_VERSION", "1.2.3")
            .env("TARGET", "a-target")
            .env("SOURCE_COMMIT", source_commit);
        script
    }

    /// What `--version` would say.
    fn version(&self, source_commit: &str) -> String {
        let printed = output(&mut self.script(source_commit), [""; 0]);
        let line = "cargo::rustc-env=EVENTS_BACKFILL_VERSION=";
        let version = printed.lines().find_map(|it| it.strip_prefix(line));
        version.unwrap().to_owned()
    }
}

#[test]
fn the_version_says_package_commit_and_target() {
    let version = Tool::unconfigured().arg("--version").run();
    version.assert_code(0);
    let start = concat!("events-backfill ", env!("CARGO_PKG_VERSION"), " (");
    let origin = version.stdout.strip_prefix(start);
    let origin = origin.unwrap_or_else(|| panic!("{}", version.stdout));
    let target = origin.split_once(", ").map_or(origin, |(_, target)| target);
    assert!(target.starts_with(std::env::consts::ARCH), "{origin}");
    // A tarball has no commit, nor has a work tree that git does not trust.
    let mut git = Command::new("git");
    git.current_dir(repository_file(""))
        .args(["rev-parse", "--short=7", "HEAD"]);
    let commit = git.output().unwrap();
    if repository_file(".git").exists() && commit.status.success() {
        let commit = String::from_utf8(commit.stdout).unwrap();
        assert!(
            origin.starts_with(commit.trim()),
            "{origin} is not {commit}"
        );
    }
}

#[test]
fn changes_of_what_the_program_is_made_of_make_it_dirty_and_others_do_not() {
    let package = Package::new();
    let root = package.root();
    let commit = package.is_in_git(&root);
    assert_eq!(package.version(""), format!("1.2.3 ({commit}, a-target)"));

    fs::write(root.join("README.md"), "Something.\n").unwrap();
    assert_eq!(package.version(""), format!("1.2.3 ({commit}, a-target)"));

    fs::write(root.join("src/more.rs"), "").unwrap();
    let dirty = format!("1.2.3 ({commit}-dirty, a-target)");
    assert_eq!(package.version(""), dirty);
    fs::remove_file(root.join("src/more.rs")).unwrap();

    fs::write(root.join("src/main.rs"), "fn main() { main() }\n").unwrap();
    assert_eq!(package.version(""), dirty);

    let next = package.commit(&root);
    assert_ne!(next, commit);
    assert_eq!(package.version(""), format!("1.2.3 ({next}, a-target)"));
}

#[test]
fn cargo_is_told_of_files_that_a_commit_changes() {
    let package = Package::new();
    let root = package.root();
    package.is_in_git(&root);
    // A clone may have its branch in one file with others, and no log.
    let has_no_log = || {
        fs::remove_dir_all(root.join(".git/logs")).unwrap();
        git(&root, &["config", "core.logAllRefUpdates", "false"]);
        git(&root, &["pack-refs", "--all"]);
    };
    for prepare in [&(|| ()) as &dyn Fn(), &has_no_log] {
        prepare();
        let watched = || {
            let printed = output(&mut package.script(""), [""; 0]);
            let prefix = "cargo::rerun-if-changed=";
            let paths = printed.lines().filter_map(|it| it.strip_prefix(prefix));
            let paths: Vec<PathBuf> = paths.map(|path| root.join(path)).collect();
            let exists = |path: &PathBuf| assert!(path.exists(), "{}", path.display());
            paths.iter().for_each(exists);
            let time = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
            paths.iter().map(time).max().unwrap()
        };
        let before = watched();
        package.commit(&root);
        assert!(watched() > before);
    }
}

#[test]
fn without_a_work_tree_of_its_own_the_commit_is_what_it_is_told() {
    let package = Package::new();
    assert_eq!(package.version(""), "1.2.3 (a-target)");
    // Somebody else's repository, in which the package was unpacked.
    package.is_in_git(&package.directory.path().join("outer"));
    assert_eq!(package.version(""), "1.2.3 (a-target)");

    let hash = "0123456789abcdef0123456789abcdef01234567";
    assert_eq!(package.version(hash), "1.2.3 (0123456, a-target)");
    let dirty = package.version("0123456-dirty");
    assert_eq!(dirty, "1.2.3 (0123456-dirty, a-target)");
    for no_commit in ["main", "012345", "0123456 "] {
        let output = package.script(no_commit).output().unwrap();
        let is_taken = no_commit.trim().len() == 7;
        assert_eq!(output.status.success(), is_taken, "{no_commit}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.contains("cargo::error=SOURCE_COMMIT"), !is_taken);
    }
}

// -------------------------------------------------------------------------------------------------
// Completions and man pages
// -------------------------------------------------------------------------------------------------

/// A directory as `/usr/local/share`, with all that the program writes there.
fn share() -> TempDir {
    let share = tempfile::tempdir().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_events-backfill"));
    program.current_dir(share.path()).arg("generate");
    output(&mut program, [share.path()]);
    share
}

/// What bash offers in place of the last word.
fn completed(share: &Path, words: &[&str]) -> Vec<String> {
    let script = r#"
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        function=$(complete -p "$1"); function=${function#*-F }; function=${function%% *}
        "$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let file = share.join("bash-completion/completions/events-backfill");
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", script, "bash"]).arg(file);
    let offered = output(&mut bash, [&["events-backfill"], words].concat());
    offered.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_subcommands_and_flags() {
    let share = share();
    let completed = |words: &[&str]| completed(share.path(), words);
    assert_eq!(completed(&["ver"]), ["verify"]);
    assert_eq!(completed(&["repair", "--opt"]), ["--optimize"]);
    assert_eq!(
        completed(&["--no-t"]),
        ["--no-trace-metadata", "--no-throttle"]
    );
    // What is hidden stays hidden.
    let all = completed(&[""]);
    for subcommand in SUBCOMMANDS {
        assert!(all.iter().any(|word| word == subcommand), "{all:?}");
    }
    assert!(!all.iter().any(|word| word == "generate"), "{all:?}");
}

#[test]
fn zsh_and_fish_are_given_every_subcommand() {
    let share = share();
    for name in [
        "zsh/site-functions/_events-backfill",
        "fish/vendor_completions.d/events-backfill.fish",
    ] {
        let script = fs::read_to_string(share.path().join(name)).unwrap();
        for subcommand in SUBCOMMANDS {
            assert!(script.contains(subcommand), "{name}: {subcommand}");
        }
        assert!(!script.contains("generate"), "{name}");
    }
}

#[test]
fn each_subcommand_has_a_man_page_that_mandoc_accepts() {
    let share = share();
    let pages = share.path().join("man/man1");
    let name = |subcommand: &&str| format!("events-backfill-{subcommand}.1");
    let mut expected: Vec<String> = SUBCOMMANDS.iter().map(name).collect();
    expected.push("events-backfill.1".to_owned());
    expected.sort();
    let found = fs::read_dir(&pages).unwrap();
    let found = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<String> = found.collect();
    found.sort();
    assert_eq!(found, expected);
    for page in &found {
        let mut mandoc = Command::new("mandoc");
        mandoc
            .args(["-T", "lint", "-W", "warning", page])
            .current_dir(&pages);
        let said = String::from_utf8(mandoc.output().unwrap().stdout).unwrap();
        // A page is as old as the version that it names.
        let complaints = said.lines().filter(|line| !line.contains("missing date"));
        assert_eq!(complaints.collect::<Vec<_>>(), [""; 0]);
    }
}

#[test]
fn the_man_page_says_what_the_help_says() {
    let share = share();
    let page = share.path().join("man/man1/events-backfill.1");
    let mut mandoc = Command::new("mandoc");
    let page = output(mandoc.args(["-T", "utf8", "-O", "width=1000"]), [page]);
    // Bold letters are struck twice.
    let page: String = {
        let mut shown: Vec<char> = Vec::new();
        for letter in page.chars() {
            match letter {
                '\u{8}' => drop(shown.pop()),
                letter => shown.push(letter),
            }
        }
        shown.into_iter().collect()
    };
    let help = Tool::unconfigured().arg("--help").run().stdout;
    let words = help.split(|c: char| c.is_whitespace() || "[]<>,".contains(c));
    for word in words.filter(|word| word.starts_with("--") || word.ends_with("_URL")) {
        assert!(page.contains(word), "{word}\n{page}");
    }
    let example = help
        .lines()
        .find(|line| line.contains("--max-rows-per-second 20000"));
    assert!(page.contains(example.unwrap().trim()), "{page}");
}

// -------------------------------------------------------------------------------------------------
// How long it takes to build
// -------------------------------------------------------------------------------------------------

/// What RocksDB is compiled with, and the features of each, as cargo resolves them for these kinds of
/// dependencies.
fn what_compiles_rocksdb(kinds: &str) -> Vec<String> {
    let depth = |line: &str| -> usize {
        let digits = line.find(|letter: char| !letter.is_ascii_digit());
        line[..digits.unwrap()].parse().unwrap()
    };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(repository_file("."));
    let arguments = "tree --locked --offline --no-dedupe --prefix depth --format {p}[{f}] --edges";
    let tree = output(&mut cargo, arguments.split(' ').chain([kinds]));
    let mut lines = tree
        .lines()
        .skip_while(|line| !line.contains("librocksdb-sys "));
    let first = lines.next().unwrap();
    let below = lines.take_while(|line| depth(line) > depth(first));
    let all = std::iter::once(first).chain(below);
    all.map(|line| {
        line.trim_start_matches(|letter: char| letter.is_ascii_digit())
            .to_owned()
    })
    .collect()
}

/// Otherwise cargo compiles it twice, for a quarter of an hour each.
#[test]
fn the_program_and_its_tests_are_linked_with_one_rocksdb() {
    let of_program = what_compiles_rocksdb("normal,build");
    let of_tests = what_compiles_rocksdb("normal,build,dev");
    assert!(of_program.len() > 10, "{of_program:?}");
    let differ = "give [build-dependencies] in Cargo.toml the features of what differs";
    assert_eq!(of_program, of_tests, "{differ}");
}
