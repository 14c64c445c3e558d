//! Starting a process: what lies between the fork and the exec.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::args::SessionDirs;
use super::protocol::{Spawn, Text};
use super::{HOST_COMMAND, SELF_EXE, STRIPPED_VARIABLES, log};
use crate::process;

/// Starts the process that a host asked for; gives its pid once its exec has succeeded.
///
/// # Errors
/// In words that name what could not be found, opened or executed.
pub fn spawn(request: &Spawn) -> Result<u32, String> {
    let strings = request.argv.iter().chain([&request.cwd, &request.log]);
    let variables = request.env.iter().flat_map(|(name, value)| [name, value]);
    if strings
        .chain(variables)
        .any(|text| text.as_bytes().contains(&0))
    {
        return Err("an argument, a variable or a path holds a NUL byte".to_owned());
    }
    let Some((program, args)) = request.argv.split_first() else {
        return Err("the command is empty: look at `argv` in the kernelspec".to_owned());
    };
    // Looked at first, since an exec's "No such file or directory" would not say which one it means.
    if !request.cwd.as_path().is_dir() {
        return Err(format!(
            "no such directory: {}",
            request.cwd.as_path().display()
        ));
    }
    let about =
        |text: &Text, error: io::Error| format!("{}: {}", reason(&error), text.as_path().display());
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(request.log.as_path())
        .map_err(|error| about(&request.log, error))?;
    let log_too = log
        .try_clone()
        .map_err(|error| about(&request.log, error))?;

    let mut command = Command::new(program.as_os_str());
    command
        .args(args.iter().map(Text::as_os_str))
        .env_clear()
        .envs(request.env.iter().filter_map(|(name, value)| {
            // As setenv(3) has it; std would panic.
            let valid = !name.as_bytes().is_empty() && !name.as_bytes().contains(&b'=');
            valid.then_some((name.as_os_str(), value.as_os_str()))
        }))
        .current_dir(request.cwd.as_path())
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too);
    let nice = request.nice;
    // SAFETY: setsid, nice and what `fresh_signals` does are async-signal-safe and touch no memory of ours.
    unsafe {
        command.pre_exec(move || {
            fresh_signals();
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            if let Some(nice) = nice {
                // A lower niceness than allowed is not worth failing for.
                libc::nice(nice);
            }
            Ok(())
        });
    }
    start(command).map_err(|error| about(program, error))
}

/// Starts the host with its end of the socket to us. Does not wait for its exec, which on a busy machine can take half
/// a second: meanwhile the engine's streams are to be read. An exec that fails is a host that ends at once. `program`:
/// another one than our own.
pub fn spawn_host(dirs: &SessionDirs, program: Option<&Path>, socket: OwnedFd) -> io::Result<u32> {
    let mut command = Command::new(program.unwrap_or(Path::new(SELF_EXE)));
    command
        .arg0("farside")
        .arg(HOST_COMMAND)
        .args(dirs.to_args())
        .stdin(socket);
    without_stripped(&mut command);
    // SAFETY: the keeper has one thread, so that all of it works in the child as well.
    match unsafe { libc::fork() } {
        ..0 => Err(io::Error::last_os_error()),
        0 => {
            fresh_signals();
            let error = command.exec();
            log(format_args!("the host cannot be executed: {error}"));
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(126) }
        }
        child @ 1.. => Ok(child.unsigned_abs()),
    }
}

fn start(mut command: Command) -> io::Result<u32> {
    without_stripped(&mut command);
    // The supervisor waits for all its children at once; dropping std's handle does not kill.
    Ok(command.spawn()?.id())
}

fn without_stripped(command: &mut Command) {
    for name in STRIPPED_VARIABLES {
        command.env_remove(name);
    }
}

/// Takes back what the keeper itself blocks and ignores.
fn fresh_signals() {
    process::unblock_signals();
    // SAFETY: SIG_DFL runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// The system's words for an error, without Rust's "(os error 2)".
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}
