//! Discovery against Jupyter's own, where the tests' Python environment is there (`make test` builds it).

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use farside::kernelspec::{Python, Search};
use serde_json::Value;

use crate::sandbox::Sandbox;

/// The interpreter with jupyter_client, from the Makefile.
fn jupyter_python() -> Option<Python> {
    Python::ask(std::env::var_os("FARSIDE_TEST_PYTHON")?.as_ref())
}

#[test]
fn the_same_kernelspecs_as_jupyter_client_finds() {
    let Some(python) = jupyter_python() else {
        eprintln!("FARSIDE_TEST_PYTHON is not set: run `make unit`");
        return;
    };
    let sandbox = Sandbox::new();
    for (place, name) in [
        ("home/.local/share/jupyter", "Python3"),
        ("extra", "ir"),
        ("home/.local/share/jupyter", "ir"),
    ] {
        let dir = sandbox.path(place).join("kernels").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(
            dir.join("kernel.json"),
            r#"{"argv": ["python3", "{connection_file}"], "language": "x"}"#,
        )
        .unwrap();
    }
    let bin = python.executable.parent().unwrap().to_owned();
    for prefer_env in ["0", "1"] {
        let code = "import json; from jupyter_client.kernelspec import KernelSpecManager as K; \
                    print(json.dumps(K().find_kernel_specs()))";
        let theirs = Command::new(&python.executable)
            .args(["-c", code])
            .env_clear()
            .env("HOME", sandbox.path("home"))
            .env("PATH", &bin)
            .env("JUPYTER_PATH", sandbox.path("extra"))
            .env("JUPYTER_PREFER_ENV_PATH", prefer_env)
            .output()
            .unwrap();
        assert!(
            theirs.status.success(),
            "{}",
            String::from_utf8_lossy(&theirs.stderr)
        );
        let theirs: BTreeMap<String, Value> = serde_json::from_slice(&theirs.stdout).unwrap();

        // The library reads the environment, so it is asked in a process that has the right one: this test itself.
        let ours = Command::new(std::env::current_exe().unwrap())
            .args([
                "kernelspecs::print_what_is_found",
                "--exact",
                "--nocapture",
                "--ignored",
            ])
            .env_clear()
            .env("HOME", sandbox.path("home"))
            .env("PATH", &bin)
            .env("JUPYTER_PATH", sandbox.path("extra"))
            .env("JUPYTER_PREFER_ENV_PATH", prefer_env)
            .output()
            .unwrap();
        let text = String::from_utf8(ours.stdout).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.split_once("FOUND "))
            .expect(&text)
            .1;
        let ours: BTreeMap<String, Value> = serde_json::from_str(line).unwrap();
        assert_eq!(ours, theirs, "JUPYTER_PREFER_ENV_PATH={prefer_env}");
    }
}

#[test]
#[ignore = "run by the test above"]
fn print_what_is_found() {
    let search = Search::from_environment();
    let found: BTreeMap<String, Value> = search
        .names()
        .into_iter()
        .filter_map(|name| Some((search.find(&name).ok()?.resource_dir, name)))
        .map(|(dir, name)| (name, Value::from(dir.to_str().unwrap())))
        .collect();
    println!("FOUND {}", serde_json::to_string(&found).unwrap());
}
