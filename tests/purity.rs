//! The pure modules touch no runtime, no files, no network, no clock, no environment; and modules use each other in
//! one direction only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// No runtime, files, network, clock, threads or environment in these.
const PURE: [&str; 11] = [
    "src/wire",
    "src/session",
    "src/journal/record.rs",
    "src/journal/codec.rs",
    "src/duration.rs",
    "src/settings.rs",
    "src/cli/render.rs",
    "src/cli/columns.rs",
    "src/cli/top/model.rs",
    "src/cli/top/view.rs",
    "src/cli/metrics/text.rs",
];

/// What a pure module would have to say to be none. `std::time::Duration` is fine, and so are `env!` and `fs` in words.
const IMPURE: [&str; 11] = [
    "tokio",
    "std::fs",
    "fs::",
    "std::net",
    "net::",
    "Instant",
    "SystemTime",
    "thread::",
    "std::thread",
    "env::",
    "libc::",
];

/// What each module may use: `cli -> launcher, host -> link, journal, session -> wire`, and the helpers beside them.
/// A name with `::` allows that submodule only.
const MAY_USE: [(&str, &[&str]); 18] = [
    ("wire", &[]),
    ("duration", &[]),
    ("process", &[]),
    ("kernelspec", &[]),
    ("spool", &[]),
    ("unix_stream", &["process"]),
    ("transport", &["wire", "spool", "unix_stream"]),
    ("settings", &["duration"]),
    ("config", &["duration", "settings"]),
    ("journal", &["wire"]),
    (
        "session",
        &["wire", "journal::record", "duration", "settings"],
    ),
    ("state_dir", &["journal::record", "process", "config"]),
    (
        "link",
        &["wire", "journal::record", "journal::codec", "session"],
    ),
    ("logging", &[]),
    (
        "keeper",
        &["journal::record", "process", "state_dir", "spool"],
    ),
    (
        "host",
        &[
            "wire",
            "session",
            "journal",
            "link",
            "transport",
            "unix_stream",
            "spool",
            "keeper",
            "process",
            "state_dir",
            "config",
            "logging",
            "duration",
            "kernelspec",
        ],
    ),
    (
        "launcher",
        &[
            "wire",
            "session",
            "journal::record",
            "link",
            "transport",
            "unix_stream",
            "keeper",
            "process",
            "state_dir",
            "config",
            "duration",
            "kernelspec",
        ],
    ),
    (
        "cli",
        &[
            "wire",
            "session",
            "journal",
            "link",
            "launcher",
            "keeper",
            "process",
            "state_dir",
            "config",
            "logging",
            "duration",
            "kernelspec",
            "transport",
        ],
    ),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            sources(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push(path.to_owned());
    }
}

/// The code of a file, line by line with numbers: no comments, and nothing behind its first `#[cfg(test)]`.
fn code(path: &Path) -> Vec<(usize, String)> {
    let name = path.file_name().unwrap().to_str().unwrap();
    if name.ends_with("tests.rs") {
        return Vec::new();
    }
    let text = std::fs::read_to_string(path).unwrap();
    (1..)
        .zip(text.lines())
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .map(|(number, line)| (number, line.split("//").next().unwrap_or("").to_owned()))
        .collect()
}

/// Whether `code` has `word`, and not only as a part of a longer name.
fn says(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(part_of_name)
            && (word.ends_with("::") || !after.is_some_and(part_of_name))
    })
}

#[test]
fn the_pure_modules_are_pure() {
    let mut sins = Vec::new();
    for module in PURE {
        let mut files = Vec::new();
        sources(&root().join(module), &mut files);
        assert!(
            !files.is_empty(),
            "{module} has moved: name its new place here"
        );
        for file in files {
            for (number, line) in code(&file) {
                for word in IMPURE {
                    if says(&line, word) {
                        sins.push(format!("{}:{number} has {word}", file.display()));
                    }
                }
            }
        }
    }
    assert!(sins.is_empty(), "{sins:#?}");
}

#[test]
fn modules_use_each_other_in_one_direction() {
    let rules: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut sins = Vec::new();
    for module in lib.lines().filter_map(|line| line.strip_prefix("pub mod ")) {
        let module = module.trim_end_matches(';');
        let Some(allowed) = rules.get(module) else {
            panic!("say here what the new module `{module}` may use");
        };
        let mut files = Vec::new();
        for place in [format!("src/{module}"), format!("src/{module}.rs")] {
            let place = root().join(place);
            if place.exists() {
                sources(&place, &mut files);
            }
        }
        assert!(!files.is_empty(), "no files of {module}");
        for file in files {
            for (number, line) in code(&file) {
                for used in uses(&line) {
                    let own = used == module || used.starts_with(&format!("{module}::"));
                    let allowed = (allowed.iter()).any(|allowed| {
                        used == *allowed || used.starts_with(&format!("{allowed}::"))
                    });
                    if !own && !allowed {
                        sins.push(format!("{}:{number} uses {used}", file.display()));
                    }
                }
            }
        }
    }
    assert!(sins.is_empty(), "{sins:#?}");
}

/// The `a::b` of each `crate::a::b` in a line.
fn uses(line: &str) -> Vec<String> {
    line.match_indices("crate::")
        .map(|(at, prefix)| {
            let path: Vec<&str> = line[at + prefix.len()..]
                .split("::")
                .map(|part| {
                    let end = part.find(|c: char| !c.is_alphanumeric() && c != '_');
                    &part[..end.unwrap_or(part.len())]
                })
                .take(2)
                .collect();
            path.join("::")
        })
        .collect()
}

#[test]
fn the_scan_finds_what_it_looks_for() {
    assert!(says("use tokio::net::TcpStream;", "tokio"));
    assert!(says("use std::time::{Duration, Instant};", "Instant"));
    assert!(says("let x = std::env::var(\"X\");", "env::"));
    assert!(says("use std::{fs::File, io};", "fs::"));
    assert!(!says("let version = env!(\"CARGO_PKG_VERSION\");", "env::"));
    assert!(!says("an_instant InstantNoodles", "Instant"));
    assert!(!says("offs::x", "fs::"));
    assert_eq!(
        uses("use crate::journal::record::Record; crate::wire::Message"),
        ["journal::record", "wire::Message"]
    );
}
