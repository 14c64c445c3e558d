//! `farside install` and `uninstall`.

use std::fs;

use insta::assert_snapshot;
use serde_json::Value;

use crate::sandbox::{Sandbox, names};

/// A home with two kernelspecs of the user's, one of them R's.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.python();
    sandbox.program("bin/R", "#!/bin/sh\n");
    for (name, program, language) in [("python3", "python", "python"), ("ir", "R", "R")] {
        let dir = sandbox.path("home/.local/share/jupyter/kernels").join(name);
        fs::create_dir_all(&dir).unwrap();
        let json = serde_json::json!({
            "argv": [program, "-f", "{connection_file}"], "language": language, "display_name": name,
        });
        fs::write(dir.join("kernel.json"), json.to_string()).unwrap();
        fs::write(dir.join("logo-64x64.png"), "png").unwrap();
    }
    sandbox
}

fn read(sandbox: &Sandbox, path: &str) -> Value {
    serde_json::from_slice(&fs::read(sandbox.path(path)).unwrap()).unwrap()
}

#[test]
fn install_writes_for_the_user() {
    let sandbox = sandbox();
    assert_snapshot!(sandbox.run(&["install"]).all(), @r"
    exit 0
    --- stdout
    farside-python3  [SANDBOX]/home/.local/share/jupyter/kernels/farside-python3
    --- stderr
    ");
    let json = read(
        &sandbox,
        "home/.local/share/jupyter/kernels/farside-python3/kernel.json",
    );
    assert_eq!(json["argv"][0], env!("CARGO_BIN_EXE_farside"));
    assert_eq!(
        (&json["interrupt_mode"], &json["display_name"]),
        (&"message".into(), &"python3 (farside)".into())
    );
    let engine = read(
        &sandbox,
        "home/.local/share/jupyter/kernels/farside-python3/engine.json",
    );
    assert_eq!(
        engine["argv"][0],
        sandbox.path("bin/python3").to_str().unwrap()
    );

    let first =
        fs::read(sandbox.path("home/.local/share/jupyter/kernels/farside-python3/kernel.json"))
            .unwrap();
    assert_eq!(sandbox.run(&["install", "--user"]).code, 0);
    let again =
        fs::read(sandbox.path("home/.local/share/jupyter/kernels/farside-python3/kernel.json"))
            .unwrap();
    assert_eq!(first, again);
    assert_eq!(
        names(&sandbox.path("home/.local/share/jupyter/kernels")),
        ["farside-python3", "ir", "python3"]
    );
    assert_eq!(
        names(&sandbox.path("home/.local/share/jupyter")),
        ["kernels"]
    );
}

#[test]
fn install_goes_where_it_is_told() {
    let sandbox = sandbox();
    let prefix = sandbox.path("prefix");
    let prefix = prefix.to_str().unwrap();
    let args = [
        "install",
        "--prefix",
        prefix,
        "--engine",
        "ir",
        "--engine",
        "python3",
        "--idle-timeout",
        "8h",
        "--json",
    ];
    let ran = sandbox.run(&args);
    assert_snapshot!(ran.all(), @r#"
    exit 0
    --- stdout
    [
      {
        "name": "farside-ir",
        "engine": "ir",
        "display_name": "ir (farside)",
        "path": "[SANDBOX]/prefix/share/jupyter/kernels/farside-ir"
      },
      {
        "name": "farside-python3",
        "engine": "python3",
        "display_name": "python3 (farside)",
        "path": "[SANDBOX]/prefix/share/jupyter/kernels/farside-python3"
      }
    ]
    --- stderr
    "#);
    assert_eq!(
        read(
            &sandbox,
            "prefix/share/jupyter/kernels/farside-ir/kernel.json"
        )["env"]["FARSIDE_IDLE_TIMEOUT"],
        "8h"
    );
    assert_eq!(sandbox.run(&["install", "--sys-prefix"]).code, 0);
    assert_eq!(
        names(&sandbox.path("env/share/jupyter/kernels")),
        ["farside-python3"]
    );
    let mut elsewhere = sandbox.command(&["install", "--engine", "ir"]);
    elsewhere
        .env("JUPYTER_DATA_DIR", sandbox.path("data"))
        .env("JUPYTER_PATH", sandbox.path("home/.local/share/jupyter"));
    assert_eq!(sandbox.ran(elsewhere.output().unwrap()).code, 0);
    assert_eq!(names(&sandbox.path("data/kernels")), ["farside-ir"]);
}

#[test]
fn a_prefix_where_jupyter_does_not_look_is_told_of() {
    let sandbox = sandbox();
    let prefix = sandbox.path("prefix");
    assert_snapshot!(sandbox.run(&["install", "--prefix", prefix.to_str().unwrap()]).all(), @r"
    exit 0
    --- stdout
    farside-python3  [SANDBOX]/prefix/share/jupyter/kernels/farside-python3
    --- stderr
    note: Jupyter does not look in [SANDBOX]/prefix/share/jupyter/kernels in this environment; add [SANDBOX]/prefix/share/jupyter to JUPYTER_PATH
    ");
}

#[test]
fn a_missing_engine_leaves_nothing_written() {
    let sandbox = sandbox();
    let ran = sandbox.run(&["install", "--engine", "ir", "--engine", "nonesuch"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""));
    // Not a snapshot: the machine's own kernelspecs in /usr/share are listed, too.
    assert!(
        ran.stderr
            .starts_with("error: no kernelspec named `nonesuch`; found: "),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("ir, ") && ran.stderr.contains("python3"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr
            .contains("[SANDBOX]/home/.local/share/jupyter/kernels, [SANDBOX]/env"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        names(&sandbox.path("home/.local/share/jupyter/kernels")),
        ["ir", "python3"]
    );
    let own = sandbox.run(&["install", "--engine", "farside-ir"]);
    assert_eq!(own.code, 2);
    assert!(own.stderr.contains("e.g. `ir`"), "{}", own.stderr);
}

#[test]
fn uninstall_takes_away_what_install_wrote() {
    let sandbox = sandbox();
    assert_eq!(
        sandbox
            .run(&["install", "--engine", "ir", "--engine", "python3"])
            .code,
        0
    );
    assert_snapshot!(sandbox.run(&["uninstall", "--engine", "ir"]).all(), @r"
    exit 0
    --- stdout
    farside-ir  [SANDBOX]/home/.local/share/jupyter/kernels/farside-ir
    --- stderr
    ");
    let removed = sandbox.json(&["uninstall", "--json"]);
    assert_eq!(removed[0]["name"], "farside-python3");
    assert_snapshot!(sandbox.run(&["uninstall"]).all(), @r"
    exit 0
    --- stdout
    --- stderr
    nothing of farside's is in [SANDBOX]/home/.local/share/jupyter/kernels
    ");
    assert_eq!(
        names(&sandbox.path("home/.local/share/jupyter/kernels")),
        ["ir", "python3"]
    );
}
