//! The arguments of the two hidden commands. Both are written and read here only.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::socket;

/// Held by the session's keeper, in the session's folder.
pub(super) const KEEPER_LOCK: &str = "keeper.lock";

/// The folders of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionDirs {
    /// Journal, logs and locks. Exists, 0700.
    pub session_dir: PathBuf,
    /// Sockets.
    pub runtime_dir: PathBuf,
}

impl SessionDirs {
    /// Whether the session's folder was deleted, and our own lock with it: no host can come up any more. Any other
    /// trouble may pass.
    pub(super) fn is_session_gone(&self) -> bool {
        std::fs::symlink_metadata(self.session_dir.join(KEEPER_LOCK))
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// As arguments.
    pub(super) fn to_args(&self) -> [&OsStr; 4] {
        [
            OsStr::new("--session-dir"),
            self.session_dir.as_os_str(),
            OsStr::new("--runtime-dir"),
            self.runtime_dir.as_os_str(),
        ]
    }
}

/// The session folder in the command line of a keeper or host (`/proc/<pid>/cmdline`: parts that end in NUL); `None`
/// where it is the one of another process.
pub fn session_of_command_line(line: &[u8]) -> Option<PathBuf> {
    let mut parts = line.split(|&byte| byte == 0).map(OsStr::from_bytes).skip(1);
    let command = parts.next()?;
    if command != super::KEEPER_COMMAND && command != super::HOST_COMMAND {
        return None;
    }
    let args: Vec<OsString> = parts.map(OsString::from).collect();
    // Behind the last NUL is one more part, an empty one.
    let args = args.strip_suffix(&[OsString::new()]).unwrap_or(&args);
    parse_dirs(args, |_, _| Ok(()))
        .ok()
        .map(|dirs| dirs.session_dir)
}

/// What a keeper is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeeperArgs {
    pub dirs: SessionDirs,
    /// The pid and start time of a host that runs and has lost its keeper. Its socket is our stdin.
    pub running_host: Option<(u32, u64)>,
}

pub(super) const RUNNING_HOST: &str = "--running-host";

impl KeeperArgs {
    pub fn parse(args: &[OsString]) -> Result<Self, String> {
        let mut running_host = None;
        let dirs = parse_dirs(args, |name, value| {
            if name != RUNNING_HOST {
                return Err(format!("unknown argument {}", name.display()));
            }
            let parsed = value.to_str().and_then(|text| {
                let (pid, start_time) = text.split_once(':')?;
                Some((pid.parse().ok()?, start_time.parse().ok()?))
            });
            running_host = Some(parsed.ok_or(format!("{RUNNING_HOST} takes PID:START_TIME"))?);
            Ok(())
        })?;
        Ok(Self { dirs, running_host })
    }
}

/// What a host is started with by its keeper.
#[derive(Debug)]
pub struct HostArgs {
    /// The session's folders.
    pub dirs: SessionDirs,
    /// The socket to the keeper, for [`super::Client::new`].
    pub keeper: OwnedFd,
}

impl HostArgs {
    /// Reads the arguments after [`super::HOST_COMMAND`], and takes the socket to the keeper out of stdin, which
    /// is /dev/null from then on. To be called once, early in `main`.
    ///
    /// # Errors
    /// Where this process was not started by a keeper.
    pub fn take(args: &[OsString]) -> io::Result<Self> {
        let dirs = parse_dirs(args, |name, _| {
            Err(format!("unknown argument {}", name.display()))
        })
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let keeper = take_stdin()?;
        Ok(Self { dirs, keeper })
    }
}

/// Takes the keeper-host socket out of stdin and puts /dev/null there.
pub(super) fn take_stdin() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    if !socket::is_seqpacket(&stdin) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "stdin is no socket of a keeper: this command is started by farside itself. To start a \
             session use `farside new`",
        ));
    }
    // SAFETY: makes a new descriptor from one that stays open, numbered above the standard ones.
    let taken = unsafe { libc::fcntl(stdin.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
    if taken < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let taken = unsafe { OwnedFd::from_raw_fd(taken) };
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: replaces what number 0 stands for in one step; std's Stdin holds no state about it.
    if unsafe { libc::dup2(null.as_raw_fd(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(taken)
}

/// Pairs of name and value; those that are not folders go to `other`.
fn parse_dirs(
    args: &[OsString],
    mut other: impl FnMut(&OsStr, &OsStr) -> Result<(), String>,
) -> Result<SessionDirs, String> {
    let (mut session_dir, mut runtime_dir) = (None, None);
    let mut pairs = args.chunks_exact(2);
    for pair in &mut pairs {
        let [name, value] = pair else { continue };
        match name.to_str() {
            Some("--session-dir") => session_dir = Some(PathBuf::from(value)),
            Some("--runtime-dir") => runtime_dir = Some(PathBuf::from(value)),
            _ => other(name, value)?,
        }
    }
    match (session_dir, runtime_dir, pairs.remainder()) {
        (Some(session_dir), Some(runtime_dir), []) => Ok(SessionDirs {
            session_dir,
            runtime_dir,
        }),
        _ => Err(
            "usage: --session-dir DIR --runtime-dir DIR. This command is started by farside \
             itself; to start a session use `farside new`"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<KeeperArgs, String> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        KeeperArgs::parse(&args)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dirs = SessionDirs {
            session_dir: "/s".into(),
            runtime_dir: "/r".into(),
        };
        let mut args: Vec<OsString> = dirs.to_args().map(OsString::from).to_vec();
        assert_eq!(
            KeeperArgs::parse(&args).unwrap(),
            KeeperArgs {
                dirs: dirs.clone(),
                running_host: None
            }
        );
        args.extend([RUNNING_HOST.into(), "12:345".into()]);
        assert_eq!(
            KeeperArgs::parse(&args).unwrap(),
            KeeperArgs {
                dirs,
                running_host: Some((12, 345))
            }
        );
    }

    #[test]
    fn a_command_line_names_its_session() {
        let dirs = "--session-dir\0/s\0--runtime-dir\0/r\0";
        let keeper = format!("farside\0host\0{dirs}");
        let found = |line: &str| session_of_command_line(line.as_bytes());
        assert_eq!(found(&keeper), Some("/s".into()));
        assert_eq!(
            found(&format!("{keeper}--running-host\x001:2\0")),
            Some("/s".into())
        );
        assert_eq!(
            found(&keeper.replace("host", "host-worker")),
            Some("/s".into())
        );
        for other in [
            "",
            "farside\0",
            "farside\0host\0",
            &keeper.replace("host", "launch"),
            dirs,
        ] {
            assert_eq!(found(other), None, "{other:?}");
        }
    }

    #[test]
    fn anything_else_is_an_error_that_leads_on() {
        assert!(parse(&[]).unwrap_err().contains("farside new"));
        assert!(parse(&["--session-dir"]).is_err());
        let both = ["--session-dir", "/s", "--runtime-dir", "/r"];
        for more in [&["--help"][..], &["--x", "y"], &[RUNNING_HOST, "12"]] {
            assert!(parse(&[&both, more].concat()).is_err(), "{more:?}");
        }
    }
}
