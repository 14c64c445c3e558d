//! The commands that are run for a session: what environment they get, and the thread of a `before_retire` hook.

use std::ffi::OsString;
use std::thread::JoinHandle;
use std::time::Duration;

use super::driver::Input;
use super::engine;
use super::inbox::Inbox;
use super::shell::{self, ShellCommand, Stopper};
use crate::config::COMMAND_VARIABLES;
use crate::session::event::Event;
use crate::state_dir::Session;

/// The engine's environment, and `ours` (of [`COMMAND_VARIABLES`]) with those that every command of a session gets.
/// Of those variables nothing comes down from a command in which this host may have been started.
pub(super) fn environment(
    session: &Session,
    ours: &[(String, String)],
) -> Vec<(OsString, OsString)> {
    let mut env = engine::environment(session);
    env.retain(|(name, _)| !COMMAND_VARIABLES.iter().any(|ours| name == *ours));
    let json = &session.json;
    let facts = [
        ("FARSIDE_SESSION_ID", &json.id),
        ("FARSIDE_SESSION_NAME", &json.name),
        ("FARSIDE_ENGINE", &json.engine),
    ];
    let facts = facts.map(|(name, value)| (name.to_owned(), value.clone()));
    for (name, value) in facts.iter().chain(ours) {
        debug_assert!(COMMAND_VARIABLES.contains(&name.as_str()), "{name}");
        env.retain(|(other, _)| other != name.as_str());
        // A NUL cannot be in an environment; the rest of the text should be.
        env.push((name.into(), value.replace('\0', "\u{fffd}").into()));
    }
    env
}

/// The hooks that run.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    running: Vec<(Stopper, JoinHandle<()>)>,
}

impl Hooks {
    /// Starts a hook, told why the session ends; its [`Event::HookEnded`] comes to the inbox.
    pub fn start(
        &mut self,
        session: &Session,
        command: String,
        limit: Duration,
        reason: String,
        engine_pid: Option<u32>,
        inbox: Inbox<Input>,
    ) {
        self.running.retain(|(_, thread)| !thread.is_finished());
        let mut ours = vec![("FARSIDE_REASON".to_owned(), reason)];
        if let Some(pid) = engine_pid {
            ours.push(("FARSIDE_ENGINE_PID".to_owned(), pid.to_string()));
        }
        let command = ShellCommand {
            command,
            cwd: session.json.cwd.clone(),
            env: environment(session, &ours),
            stdin: None,
            limit,
        };
        let answer = inbox.clone();
        let started = shell::stopper().and_then(|(stopper, stop)| {
            let thread = std::thread::Builder::new()
                .name("hook".into())
                .spawn(move || {
                    let outcome = shell::run(&command, &stop).to_string();
                    answer.send_now(Input::Event(Event::HookEnded { outcome }));
                })?;
            Ok((stopper, thread))
        });
        match started {
            Ok(running) => self.running.push(running),
            Err(error) => {
                let outcome = format!("cannot be run: {error}");
                inbox.send_now(Input::Event(Event::HookEnded { outcome }));
            }
        }
    }

    /// The session is over: what runs still is killed.
    pub fn finish(&mut self) {
        for (stopper, thread) in self.running.drain(..) {
            drop(stopper);
            let _ = thread.join();
        }
    }
}
