use super::install::{Target, install, uninstall};
use super::*;

struct Prefix {
    dir: tempfile::TempDir,
}

impl Prefix {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }
    fn path(&self) -> &Path {
        self.dir.path()
    }
    fn kernels(&self) -> PathBuf {
        self.path().join("share/jupyter/kernels")
    }
    fn spec(&self, name: &str, json: &str) -> PathBuf {
        let dir = self.kernels().join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("kernel.json"), json).unwrap();
        dir
    }
    fn program(&self, name: &str) -> PathBuf {
        let path = self.path().join("bin").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
    fn python(&self, ipykernel: bool) -> Python {
        Python {
            executable: self.program("python3.11"),
            prefix: self.path().to_owned(),
            is_environment: false,
            version: (3, 11),
            user_base: None,
            ipykernel: ipykernel.then(|| self.path().join("lib/ipykernel/__init__.py")),
        }
    }
}

fn search(prefixes: &[&Prefix], pythons: Vec<Python>) -> Search {
    Search {
        kernel_dirs: prefixes.iter().map(|p| p.kernels()).collect(),
        pythons,
        path: std::env::join_paths(prefixes.iter().map(|p| p.path().join("bin"))).unwrap(),
    }
}

const PLAIN: &str =
    r#"{"argv": ["python", "-m", "x", "-f", "{connection_file}"], "language": "python"}"#;

#[test]
fn the_first_folder_wins_and_case_does_not_matter() {
    let (a, b) = (Prefix::new(), Prefix::new());
    let python = a.program("python");
    a.spec("Python3", PLAIN);
    b.spec("python3", PLAIN);
    b.spec("ir", PLAIN);
    b.spec("farside-python3", PLAIN);
    b.spec("not a name", PLAIN);
    let search = search(&[&a, &b], vec![b.python(true)]);
    let spec = search.find("PYTHON3").unwrap();
    assert_eq!(
        (spec.name.as_str(), spec.resource_dir.as_path()),
        ("python3", &*a.kernels().join("Python3"))
    );
    assert_eq!(
        spec.argv[0],
        python.to_str().unwrap(),
        "the python beside the spec, not the one on PATH"
    );
    assert_eq!(spec.display_name, "python3");
    assert_eq!(Vec::from_iter(search.names()), ["ir", "python3"]);
}

#[test]
fn a_missing_engine_is_told_with_what_there_is() {
    let prefix = Prefix::new();
    prefix.spec("ir", PLAIN);
    let search = search(&[&prefix], Vec::new());
    let error = search.find("deno").unwrap_err().to_string();
    assert!(
        error.contains("`deno`") && error.contains("found: ir;"),
        "{error}"
    );
    assert!(
        error.contains(prefix.kernels().to_str().unwrap()),
        "{error}"
    );
    let error = search.find("ir").unwrap_err();
    assert!(
        matches!(error, SpecError::NoProgram { .. }) && error.to_string().contains("bin"),
        "{error}"
    );
}

#[test]
fn farside_is_no_engine_whatever_its_spec_is_called() {
    let prefix = Prefix::new();
    prefix.program("python");
    prefix.spec(
        "renamed",
        r#"{"argv": ["python", "{connection_file}"], "metadata": {"farside": {"engine": "ir"}}}"#,
    );
    let search = search(&[&prefix], Vec::new());
    for name in ["farside-ir", "renamed"] {
        let error = search.find(name).unwrap_err();
        assert!(
            matches!(&error, SpecError::OwnSpec { engine, .. } if engine == "ir"),
            "{error}"
        );
    }
}

#[test]
fn ipykernel_without_a_spec_is_found_too() {
    let prefix = Prefix::new();
    let spec = search(&[&prefix], vec![prefix.python(true)])
        .find("python3")
        .unwrap();
    assert_eq!(
        spec.argv[0],
        prefix.path().join("bin/python3.11").to_str().unwrap()
    );
    assert_eq!(
        spec.argv[1..],
        ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    );
    assert_eq!(spec.metadata["debugger"], true);
    assert!(
        search(&[&prefix], vec![prefix.python(false)])
            .find("python3")
            .is_err()
    );
}

#[test]
fn programs_become_absolute() {
    let (own, other) = (Prefix::new(), Prefix::new());
    let on_path = other.program("R");
    let search = search(&[&own, &other], vec![other.python(false)]);
    let program = |program: &str| search.program(program, Some(own.path()));
    assert_eq!(program("R"), Ok(on_path));
    // No python in the spec's own prefix: the one that Jupyter would run.
    for name in ["python", "python3", "python3.11"] {
        assert_eq!(
            program(name),
            Ok(other.path().join("bin/python3.11")),
            "{name}"
        );
    }
    assert!(
        program("python3.9").is_err(),
        "another version is another interpreter"
    );
    let beside = own.program("python3");
    assert_eq!(program("python"), Ok(beside));
    assert!(program("/no/such/python").is_err());
    assert!(program("none").is_err());
}

#[test]
fn a_spec_is_read_leniently_and_refused_by_field() {
    let dir = Path::new("/r");
    let read = |json: &str| parse("x", dir, serde_json::from_str(json).unwrap());
    let spec = read(
        r#"{"argv": ["a", "{connection_file}"], "env": {"N": 1, "B": true, "S": "${S}/x"}, "interrupt_mode": "Message",
            "metadata": [], "unknown": {}, "display_name": "", "language": 5}"#,
    )
    .unwrap();
    assert_eq!(
        spec.env
            .into_iter()
            .map(|(k, v)| k + "=" + &v)
            .collect::<Vec<_>>(),
        ["B=true", "N=1", "S=${S}/x"]
    );
    assert_eq!(
        (spec.interrupt_mode, spec.display_name.as_str()),
        (InterruptMode::Message, "x")
    );
    for (json, complaint) in [
        ("{}", "no `argv`"),
        (r#"{"argv": []}"#, "`argv` is empty"),
        (r#"{"argv": "x"}"#, "not a list of strings"),
        (r#"{"argv": ["x"]}"#, "no `{connection_file}`"),
        (
            r#"{"argv": ["x", "{connection_file}"], "interrupt_mode": "loud"}"#,
            "`interrupt_mode` is `loud`",
        ),
        (
            r#"{"argv": ["x", "{connection_file}"], "env": {"A": []}}"#,
            "`env.A`",
        ),
        (
            r#"{"argv": ["x", "{connection_file}"], "metadata": {"kernel_provisioner": {"provisioner_name": "k8s"}}}"#,
            "`k8s`",
        ),
    ] {
        let error = read(json).unwrap_err();
        assert!(error.contains(complaint), "{json}: {error}");
    }
    let prefix = Prefix::new();
    prefix.spec("bad", "{ not json");
    let error = search(&[&prefix], Vec::new())
        .find("bad")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("kernel.json") && error.contains("not a JSON object"),
        "{error}"
    );
}

#[test]
fn the_search_order_is_jupyters() {
    let python = |prefix: &str, is_environment| Python {
        executable: "/x".into(),
        prefix: prefix.into(),
        is_environment,
        version: (3, 11),
        user_base: Some("/home/me/.local".into()),
        ipykernel: None,
    };
    let dirs = |vars: &[(&str, &str)], python: Python| {
        let var = |name: &str| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| OsString::from(v))
        };
        let dirs = kernel_dirs(&var, &[python]);
        dirs.iter()
            .map(|d| d.parent().unwrap().display().to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let home = ("HOME", "/home/me");
    let system = "/usr/local/share/jupyter /usr/share/jupyter";
    assert_eq!(
        dirs(&[home], python("/opt", false)),
        format!("/home/me/.local/share/jupyter /opt/share/jupyter {system}")
    );
    assert_eq!(
        dirs(&[home], python("/venv", true)),
        format!("/venv/share/jupyter /home/me/.local/share/jupyter {system}")
    );
    assert_eq!(
        dirs(
            &[
                home,
                ("JUPYTER_PREFER_ENV_PATH", "0"),
                ("JUPYTER_PATH", "/a:/b")
            ],
            python("/venv", true)
        ),
        format!("/a /b /home/me/.local/share/jupyter /venv/share/jupyter {system}")
    );
    assert_eq!(
        dirs(
            &[
                home,
                ("JUPYTER_DATA_DIR", "/data"),
                ("JUPYTER_PREFER_ENV_PATH", "1")
            ],
            python("/usr", false)
        ),
        format!("/data /home/me/.local/share/jupyter {system}")
    );
}

#[test]
fn install_writes_a_whole_spec_and_can_be_repeated() {
    let (engine, target) = (Prefix::new(), Prefix::new());
    let python = engine.program("python");
    let dir = engine.spec(
        "python3",
        r#"{"argv": ["python", "-f", "{connection_file}"], "language": "python", "display_name": "Py",
            "env": {"A": "${A}:1"}, "kernel_protocol_version": "5.5",
            "metadata": {"debugger": true, "supported_encryption": ["curve"], "cull_idle_timeout": 5}}"#,
    );
    for file in ["logo-64x64.png", "logo-svg.svg", "kernel.js", "other.txt"] {
        fs::write(dir.join(file), file).unwrap();
    }
    let spec = search(&[&engine], Vec::new()).find("python3").unwrap();
    let farside = Path::new("/opt/farside");
    let settings = [("FARSIDE_IDLE_TIMEOUT".to_owned(), "8h".to_owned())];
    let first = install(&spec, &target.kernels(), farside, Some("Old"), &[]).unwrap();
    fs::write(first.path.join("stale"), "").unwrap();
    let installed = install(&spec, &target.kernels(), farside, None, &settings).unwrap();
    assert_eq!(
        (installed.name.as_str(), installed.display_name.as_str()),
        ("farside-python3", "Py (farside)")
    );
    let json = read_object(&installed.path.join("kernel.json")).unwrap();
    let record = installed.path.join("engine.json");
    let expected = serde_json::json!({
        "argv": ["/opt/farside", "launch", "--engine", "python3", "--engine-spec", record, "-f", "{connection_file}"],
        "display_name": "Py (farside)",
        "language": "python",
        "interrupt_mode": "message",
        "env": {"A": "${A}:1", "FARSIDE_IDLE_TIMEOUT": "8h"},
        "metadata": {
            "debugger": true, "cull_idle_timeout": 3_153_600_000_u64,
            "farside": {"version": env!("CARGO_PKG_VERSION"), "engine": "python3"}
        },
        "kernel_protocol_version": "5.5",
    });
    assert_eq!(Value::Object(json), expected);
    let mut files: Vec<String> = fs::read_dir(&installed.path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(
        files,
        [
            "engine.json",
            "kernel.js",
            "kernel.json",
            "logo-64x64.png",
            "logo-svg.svg"
        ]
    );
    assert_eq!(
        fs::read_dir(target.path().join("share/jupyter"))
            .unwrap()
            .count(),
        1,
        "nothing is left aside"
    );

    // The engine is found again from the record alone, also when its spec has gone.
    fs::remove_dir_all(&dir).unwrap();
    let resolved = resolve("python3", Some(&record)).unwrap();
    assert_eq!(resolved, spec);
    fs::remove_file(python).unwrap();
    let missing = resolve("no-such-engine", Some(&record))
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("is gone since `farside install`"),
        "{missing}"
    );
}

#[test]
fn install_and_uninstall_touch_nothing_of_others() {
    let (engine, target) = (Prefix::new(), Prefix::new());
    let (python, ir) = (
        engine.python(true).native_spec().unwrap(),
        engine.python(true).native_spec().unwrap(),
    );
    let ir = EngineSpec {
        name: "ir".to_owned(),
        ..ir
    };
    let theirs = target.spec("farside-python3", PLAIN);
    let kernels = target.kernels();
    let refused = install(&python, &kernels, Path::new("/f"), None, &[]);
    assert!(matches!(refused, Err(SpecError::NotOurs { .. })));
    install(&ir, &kernels, Path::new("/f"), None, &[]).unwrap();
    assert_eq!(uninstall(&kernels, &["python3".to_owned()]).unwrap(), []);
    let removed = uninstall(&kernels, &[]).unwrap();
    assert_eq!(
        removed.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
        ["farside-ir"]
    );
    assert!(theirs.join("kernel.json").is_file());
    assert!(!kernels.join("farside-ir").exists());
    assert_eq!(uninstall(&kernels.join("none"), &[]).unwrap(), []);
}

#[test]
fn targets_are_folders_of_kernelspecs() {
    let prefix = Prefix::new();
    let mut search = search(&[], vec![prefix.python(false)]);
    assert_eq!(
        Target::Prefix("/p".into()).kernel_dir(&search).unwrap(),
        Path::new("/p/share/jupyter/kernels")
    );
    assert_eq!(
        Target::SysPrefix.kernel_dir(&search).unwrap(),
        prefix.kernels()
    );
    search.pythons.clear();
    assert!(matches!(
        Target::SysPrefix.kernel_dir(&search),
        Err(SpecError::NoPython)
    ));
}

#[test]
fn env_is_applied_once() {
    let prefix = Prefix::new();
    let mut spec = prefix.python(true).native_spec().unwrap();
    spec.env = BTreeMap::from([
        ("PATH".to_owned(), "/x:${PATH}".to_owned()),
        ("NEW".to_owned(), "$HOME/n".to_owned()),
    ]);
    let base = |name: &str| {
        ["PATH", "HOME"]
            .contains(&name)
            .then(|| format!("<{name}>"))
    };
    let pairs = |env: Vec<(String, String)>| {
        env.into_iter()
            .map(|(k, v)| k + "=" + &v)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        pairs(spec.environment(base)),
        ["NEW=<HOME>/n", "PATH=/x:<PATH>"]
    );
    assert_eq!(
        pairs(spec.environment_under_frontend(base)),
        ["NEW=<HOME>/n", "PATH=<PATH>"]
    );
}
