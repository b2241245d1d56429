//! What the documents name is there: files, headings, and the version of Rust that Cargo.toml asks for.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use crate::support::repository_file;

/// A link in a document: what it leads to, and the line it is on.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    to: String,
    line: usize,
}

/// The lines of a document, with their numbers, that are not code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fence: Option<&str> = None;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let line = line.trim_start();
        match fence {
            Some(end) => {
                if line.starts_with(end) {
                    fence = None;
                }
                false
            }
            None => {
                fence = ["```", "~~~"]
                    .into_iter()
                    .find(|mark| line.starts_with(mark));
                fence.is_none()
            }
        }
    })
}

/// A line without what stands between backticks, which may have begun on a line before.
fn without_code(line: &str, in_code: &mut bool) -> String {
    // Code ends with its paragraph.
    *in_code &= !line.trim().is_empty();
    let mut words = String::new();
    for (place, part) in line.split('`').enumerate() {
        *in_code ^= place > 0;
        if !*in_code {
            words.push_str(part);
        }
    }
    words
}

/// The links of a document: `[words](to)`, `![words](to)`, `[name]: to`, and those of HTML.
fn links(text: &str) -> Vec<Link> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (number, line) in prose(text) {
        let mut found: Vec<&str> = Vec::new();
        let line = without_code(line, &mut in_code);
        for rest in line.split("](").skip(1) {
            found.extend(rest.split([')', ' ']).next());
        }
        if let Some((name, to)) = line.split_once("]: ")
            && name.starts_with('[')
        {
            found.extend(to.split_whitespace().next());
        }
        for attribute in ["href=\"", "src=\"", "srcset=\""] {
            let rests = line.split(attribute).skip(1);
            found.extend(rests.filter_map(|rest| rest.split('"').next()));
        }
        links.extend(found.into_iter().map(|to| Link {
            to: to.trim_matches(['<', '>']).to_owned(),
            line: number,
        }));
    }
    links
}

/// The words of a heading, as they are shown.
fn shown(heading: &str) -> String {
    let mut words = String::new();
    let mut rest = heading;
    // Of a link only its words are.
    while let Some((before, link)) = rest.split_once('[') {
        let Some((text, after)) = link.split_once("](") else {
            break;
        };
        words.push_str(before);
        words.push_str(text);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    words + rest
}

/// What leads to each heading of a document, as GitHub makes it, and to each `id` in its HTML.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut times: HashMap<String, usize> = HashMap::new();
    for (_, line) in prose(text) {
        for attribute in [" id=\"", " name=\""] {
            let rests = line.split(attribute).skip(1);
            anchors.extend(
                rests
                    .filter_map(|rest| rest.split('"').next())
                    .map(str::to_owned),
            );
        }
        let heading = line.trim_start_matches('#');
        let level = line.len() - heading.len();
        if !(1..=6).contains(&level) || !heading.starts_with(' ') {
            continue;
        }
        let anchor: String = shown(heading.trim())
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let again = times.entry(anchor.clone()).or_default();
        anchors.insert(match *again {
            0 => anchor,
            again => format!("{anchor}-{again}"),
        });
        *again += 1;
    }
    anchors
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

/// What is wrong with the links of a document at `path` in the repository at `root`, whose files are these.
fn broken(root: &Path, path: &str, files: &BTreeSet<PathBuf>) -> Vec<String> {
    let text = fs::read_to_string(root.join(path)).unwrap();
    let directory = Path::new(path).parent().unwrap();
    let is_elsewhere = |to: &str| to.contains("://") || to.starts_with("mailto:");
    let links = links(&text);
    let links = links.iter().filter(|link| !is_elsewhere(&link.to));
    let wrong = links.filter_map(|Link { to, line }| {
        let (file, anchor) = to.split_once('#').unwrap_or((to, ""));
        let target = match file {
            "" => PathBuf::from(path),
            file => normal(&directory.join(file)),
        };
        // A directory is where its files are.
        if !files.iter().any(|file| file.starts_with(&target)) {
            return Some(format!(
                "{path}:{line}: {to}: there is no file {}",
                target.display()
            ));
        }
        let is_document = target
            .extension()
            .is_some_and(|extension| extension == "md");
        if anchor.is_empty() || !is_document {
            return None;
        }
        let anchors = anchors(&fs::read_to_string(root.join(&target)).unwrap());
        (!anchors.contains(anchor)).then(|| {
            format!(
                "{path}:{line}: {to}: {} has no such heading",
                target.display()
            )
        })
    });
    wrong.collect()
}

/// The files that git knows, or would know once they are added.
fn files_of_repository() -> BTreeSet<PathBuf> {
    let git = Command::new("git")
        .current_dir(repository_file("."))
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .output();
    let git = git.unwrap_or_else(|error| panic!("git cannot be run ({error}): install it"));
    let said = String::from_utf8_lossy(&git.stderr);
    assert!(git.status.success(), "git ls-files: {said}");
    let names = String::from_utf8(git.stdout).unwrap();
    let paths = names.split_terminator('\0').map(PathBuf::from);
    // What is deleted and not committed is not there.
    paths
        .filter(|path| repository_file(".").join(path).exists())
        .collect()
}

#[test]
fn every_link_leads_to_a_file_and_every_anchor_to_a_heading() {
    let files = files_of_repository();
    let documents = files.iter().filter_map(|file| file.to_str());
    let documents: Vec<&str> = documents.filter(|file| file.ends_with(".md")).collect();
    assert!(documents.contains(&"README.md"), "{documents:?}");
    let root = repository_file(".");
    let of_each = documents
        .iter()
        .map(|document| broken(&root, document, &files));
    let broken: Vec<String> = of_each.flatten().collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn broken_links_are_found_wherever_they_stand() {
    let directory = tempfile::tempdir().unwrap();
    let text = "# A `code`, and [a link](other.md)\n\
                [there](#a-code-and-a-link) [again](#a-code-and-a-link-1) ![picture](docs/there.svg)\n\
                # A code, and a link\n\
                `[not](one)` [gone](gone.md) <img src=\"gone.svg\"> [there](docs/#any)\n\
                ```sh\n[no link](in-code.md)\n# no heading\n```\n\
                [heading](#no-heading), [elsewhere](https://a.b/c#d) [up](docs/../README.md#gone)\n\
                [named]: gone.txt\n\
                code that `goes\n[on](not.md)` and [ends](ended.md)\n\
                and `does not\n\n[end](paragraph.md)\n";
    fs::write(directory.path().join("README.md"), text).unwrap();
    let files = ["README.md", "docs/there.svg"].map(PathBuf::from).into();
    let broken = broken(directory.path(), "README.md", &files);
    let of_lines: Vec<Vec<&str>> = broken
        .iter()
        .map(|wrong| wrong.split(": ").take(2).collect())
        .collect();
    let expected: [Vec<&str>; 8] = [
        vec!["README.md:1", "other.md"],
        vec!["README.md:4", "gone.md"],
        vec!["README.md:4", "gone.svg"],
        vec!["README.md:9", "#no-heading"],
        vec!["README.md:9", "docs/../README.md#gone"],
        vec!["README.md:10", "gone.txt"],
        vec!["README.md:12", "ended.md"],
        vec!["README.md:15", "paragraph.md"],
    ];
    assert_eq!(of_lines, expected, "{broken:#?}");
}

/// The number of a version as `1.89` or `1.89.0`.
fn version(text: &str) -> (u32, u32) {
    let mut parts = text.trim().split('.').map(|part| part.parse().unwrap());
    (parts.next().unwrap(), parts.next().unwrap())
}

#[test]
fn the_oldest_rust_is_not_newer_than_the_one_at_work_and_the_documents_name_it() {
    let oldest = env!("CARGO_PKG_RUST_VERSION");
    assert!(!oldest.is_empty(), "Cargo.toml has no rust-version");
    let rustc = Command::new("rustc").arg("--version").output().unwrap();
    let at_work = String::from_utf8(rustc.stdout).unwrap();
    let at_work = at_work.split_whitespace().nth(1).unwrap();
    assert!(version(oldest) <= version(at_work), "{oldest} > {at_work}");
    for document in ["README.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(repository_file(document)).unwrap();
        let words = format!("Rust {oldest}");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(&words), "{document} does not say {words}");
    }
}
