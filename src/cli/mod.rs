//! The command line: what can be said, and what becomes of it. One small file a command.
//!
//! Owns: arguments, exit codes, the split of stdout (data) and stderr (messages), rendering ([`render`], pure).
//! Refuses to know: sockets and the journal's format; commands ask `link`, `journal` and `state_dir`.
//! Invariant: nothing happens before all arguments have been understood.

mod attach;
mod client;
pub mod columns;
mod completions;
mod config;
mod connect;
mod console;
mod exec;
mod extend;
mod follow;
mod history;
mod install;
mod interrupt;
mod launch;
mod logs;
mod ls;
mod metrics;
mod new;
mod output;
mod prune;
mod readings;
mod records;
pub mod render;
mod restart;
mod status;
mod stop;
mod terminal;
#[cfg(test)]
mod tests;
mod top;
mod upgrade_host;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::config::{ConfigError, DURATION_FORM, parse_duration};
use crate::kernelspec::SpecError;
use crate::state_dir::{Session, Sessions, StateError};

pub use output::Output;

/// tmux for Jupyter kernels: executions go on, and are replayed, after the frontend has gone.
#[derive(Debug, Parser)]
#[command(
    name = "farside",
    version,
    after_help = AFTER_HELP,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
SESSION is an id, the beginning of one, or a name, as `farside ls` shows them.

Examples:
  farside install --user            JupyterLab and others now offer \"Python 3 (ipykernel) (farside)\"
  farside ls                        what runs, for whom, and what it is doing
  farside attach train              see what the running cell has printed, and go on watching
  farside logs train 3 | less       what execution 3 printed
  id=$(farside new --name train)    a session without a notebook ...
  farside exec train --detach - < train.py      ... that runs a script

Exit codes: 0 done, 1 the code raised an error, 2 usage, 3 no such session, 4 farside failed.
Settings: `farside config` shows them all, and where each value comes from.";

/// Every command. The order is that of `--help`: what a person uses most comes first.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Command {
    Install(install::InstallArgs),
    Uninstall(install::UninstallArgs),
    Ls(ls::Args),
    Status(status::Args),
    Top(top::Args),
    Attach(attach::Args),
    Logs(logs::Args),
    History(history::Args),
    New(new::Args),
    Exec(exec::Args),
    Interrupt(interrupt::Args),
    Restart(restart::Args),
    Stop(stop::Args),
    Extend(extend::Args),
    Console(console::Args),
    Connect(connect::Args),
    Metrics(metrics::Args),
    Prune(prune::Args),
    UpgradeHost(upgrade_host::Args),
    Config(config::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Launch(launch::Args),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Done,
    /// The code that was run raised an error.
    Raised,
    /// What was asked makes no sense.
    Usage,
    /// There is no such session.
    NoSession,
    /// farside failed.
    Failed,
    /// A program that was started for the person ended with this code (`farside console`).
    Of(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Raised => 1,
            Exit::Usage => 2,
            Exit::NoSession => 3,
            Exit::Failed => 4,
            Exit::Of(code) => code,
        })
    }
}

/// Parses the process's arguments and runs the command. Everything but keeper and host comes through here: main.rs
/// hands those two over before clap is asked.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` are "errors" of clap's that go to stdout and are no failure.
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
            let _ = error.print();
            return exit.into();
        }
    };
    let mut out = Output::of_process();
    let exit = match run(cli.command, &mut out)
        .and_then(|exit| out.flush().map(|()| exit).map_err(Into::into))
    {
        Ok(exit) => exit,
        // `farside logs | head`: the reader has seen enough.
        Err(error) if is_broken_pipe(&error) => Exit::Done,
        Err(error) => {
            out.error(&error);
            exit_of(&error)
        }
    };
    exit.into()
}

fn run(command: Command, out: &mut Output) -> anyhow::Result<Exit> {
    match command {
        Command::Install(args) => install::install(&args, out),
        Command::Uninstall(args) => install::uninstall(&args, out),
        Command::Ls(args) => ls::run(&args, out),
        Command::Status(args) => status::run(&args, out),
        Command::Top(args) => top::run(&args, out),
        Command::Attach(args) => attach::run(&args, out),
        Command::Logs(args) => logs::run(&args, out),
        Command::History(args) => history::run(&args, out),
        Command::New(args) => new::run(&args, out),
        Command::Exec(args) => exec::run(&args, out),
        Command::Interrupt(args) => interrupt::run(&args, out),
        Command::Restart(args) => restart::run(&args, out),
        Command::Stop(args) => stop::run(&args, out),
        Command::Extend(args) => extend::run(&args, out),
        Command::Console(args) => console::run(&args, out),
        Command::Connect(args) => connect::run(&args, out),
        Command::Metrics(args) => metrics::run(&args, out),
        Command::Prune(args) => prune::run(&args, out),
        Command::UpgradeHost(args) => upgrade_host::run(&args, out),
        Command::Config(args) => config::run(&args, out),
        Command::Completions(args) => completions::run(&args, out),
        Command::Launch(args) => launch::run(&args, out),
    }
}

/// The exit code that an error stands for.
fn exit_of(error: &anyhow::Error) -> Exit {
    if let Some(error) = error.downcast_ref::<StateError>() {
        return match error {
            StateError::NotFound { .. } => Exit::NoSession,
            StateError::Ambiguous { .. } | StateError::BadName { .. } => Exit::Usage,
            StateError::Insecure { .. }
            | StateError::Io { .. }
            | StateError::NoSocketFolder { .. }
            | StateError::NoHome
            | StateError::LockTimeout { .. } => Exit::Failed,
        };
    }
    if error.is::<ConfigError>() || error.is::<UsageError>() {
        return Exit::Usage;
    }
    match error.downcast_ref::<SpecError>() {
        Some(SpecError::OwnSpec { .. }) => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// Arguments that clap cannot see to be wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().map(io::Error::kind)
    };
    error
        .chain()
        .any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

/// The session that a SESSION argument means.
fn find_session(selector: &str) -> Result<Session, StateError> {
    Sessions::open()?.find(selector)
}

/// clap's value parser for durations.
fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("give {DURATION_FORM}"))
}
