//! The rooms of the house: imports point down only, no files import each other in a circle, and few
//! files lie loose.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{ItemMod, ItemUse, UseTree};

/// The rooms from the top to the bottom: what is in one may import what is in those after it.
const ROOMS: [&str; 25] = [
    "main",
    "lib",
    "commands",
    "page",
    "repair",
    "plan",
    "verify",
    "backfill",
    "session",
    "state",
    "inspect",
    "enrich",
    "cli",
    "telemetry",
    "control",
    "throttle",
    "mapping",
    "native",
    "clickhouse",
    "trace_store",
    "progress",
    "memory",
    "error",
    "partition",
    "shutdown",
];

/// Files beside the rooms, at most.
const MOST_LOOSE_FILES: usize = 6;

/// A module as the names on the way to it.
type Module = Vec<String>;

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files_below(&path, found),
            // Templates lie among them.
            false if path.extension().is_some_and(|extension| extension == "rs") => {
                found.push(path)
            }
            false => {}
        }
    }
}

fn module_of(file: &Path) -> Module {
    let path = file.strip_prefix(sources()).unwrap().with_extension("");
    let names = path.iter().map(|name| name.to_str().unwrap().to_owned());
    names.filter(|name| name != "mod").collect()
}

/// What one file imports, or names with its whole path.
struct Imports<'a> {
    module: &'a [String],
    paths: Vec<Module>,
}

impl Imports<'_> {
    /// A path as it is seen from the root of the crate, if it leads into the crate.
    fn add(&mut self, path: &[String]) {
        let mut absolute = match path.first().map(String::as_str) {
            Some("crate" | "events_backfill") => Vec::new(),
            Some("self") => self.module.to_vec(),
            Some("super") => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            // Perhaps a child.
            Some(_) => [self.module, &path[..1]].concat(),
            None => return,
        };
        for name in &path[1..] {
            match name.as_str() {
                "super" => drop(absolute.pop()),
                "self" => {}
                _ => absolute.push(name.clone()),
            }
        }
        self.paths.push(absolute);
    }

    fn add_tree(&mut self, tree: &UseTree, before: &mut Module) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.add_tree(&path.tree, before);
                before.pop();
            }
            UseTree::Name(name) => self.add(&[&before[..], &[name.ident.to_string()]].concat()),
            UseTree::Rename(name) => self.add(&[&before[..], &[name.ident.to_string()]].concat()),
            UseTree::Glob(_) => self.add(before),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(tree, before);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Imports<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        // Tests may use whatever they test.
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_tree(&item.tree, &mut Module::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Module = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if names.len() > 1 {
            self.add(&names);
        }
        visit::visit_path(self, path);
    }
}

/// The files of the crate, each with those that it imports from.
fn imports() -> BTreeMap<Module, BTreeSet<Module>> {
    let mut files = Vec::new();
    files_below(&sources(), &mut files);
    let modules: BTreeSet<Module> = files.iter().map(|file| module_of(file)).collect();
    let of_file = |file: &PathBuf| {
        let module = module_of(file);
        let syntax = syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap();
        let mut imports = Imports {
            module: &module,
            paths: Vec::new(),
        };
        imports.visit_file(&syntax);
        let found = imports.paths.iter().filter_map(|path| {
            let mut ends = (1..=path.len()).rev();
            ends.find_map(|end| modules.get(&path[..end]).cloned())
        });
        let found = found.filter(|other| *other != module).collect();
        (module, found)
    };
    files.iter().map(of_file).collect()
}

/// The place of a module's room, counted from the top.
fn floor(module: &[String]) -> usize {
    let room = &module[0];
    let known = ROOMS.iter().position(|name| name == room);
    known.unwrap_or_else(|| panic!("{room} is not among the rooms: say where it belongs"))
}

#[test]
fn imports_point_down_only() {
    let imports = imports();
    let arrows = imports.iter().flat_map(|(module, others)| {
        let others = others.iter().filter(|other| floor(other) < floor(module));
        others.map(|other| format!("{} imports {}", module.join("::"), other.join("::")))
    });
    let upwards: Vec<String> = arrows.collect();
    assert!(upwards.is_empty(), "{}", upwards.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut imports = imports();
    // What imports nothing that is left is in no circle, and neither is what nothing left imports.
    loop {
        let imported: BTreeSet<Module> = imports.values().flatten().cloned().collect();
        let before = imports.len();
        let left: BTreeSet<Module> = imports.keys().cloned().collect();
        imports.retain(|module, others| {
            imported.contains(module) && others.iter().any(|other| left.contains(other))
        });
        if imports.len() == before {
            break;
        }
    }
    let left: Vec<String> = imports.keys().map(|module| module.join("::")).collect();
    assert!(left.is_empty(), "in circles, or between them: {left:?}");
}

#[test]
fn few_files_lie_loose() {
    let modules = imports();
    let loose = modules.keys().filter(|module| module.len() == 1);
    let directory = |module: &&Module| !sources().join(&module[0]).is_dir();
    let loose: Vec<String> = loose.filter(directory).map(|m| m.join("::")).collect();
    assert!(loose.len() <= MOST_LOOSE_FILES, "{loose:?}");
    let rooms: BTreeSet<&str> = modules.keys().map(|module| module[0].as_str()).collect();
    let gone: Vec<_> = ROOMS.iter().filter(|name| !rooms.contains(*name)).collect();
    assert!(gone.is_empty(), "rooms that are not there: {gone:?}");
}
