//! One notification on its way: tries, and what comes of them in words that hold no secret.

use std::time::Duration;

use super::shape::cut;
use super::{Job, Policy, Queue, Target};
use crate::host::shell::{self, ShellCommand, StopSignal};

/// Of what a failed command said, so much goes to the log.
const LOGGED_CHARS_MAX: usize = 500;

/// Does it, with all its tries.
pub(super) fn deliver(
    job: &Job,
    policy: &Policy,
    queue: &Queue,
    stop: &StopSignal,
) -> Result<(), String> {
    const NO_TIME: &str = "the session is over, and its time for this is up";
    match &job.to {
        Target::Command { command, cwd, env } => {
            let command = ShellCommand {
                command: command.clone(),
                cwd: cwd.clone(),
                env: env.clone(),
                stdin: Some(format!("{}\n", job.json).into_bytes()),
                limit: queue.allowed(policy.command_limit).ok_or(NO_TIME)?,
            };
            let ended = shell::run(&command, stop);
            if ended.is_success() {
                Ok(())
            } else {
                Err(cut(&ended.to_string(), LOGGED_CHARS_MAX))
            }
        }
        Target::Url(url) => {
            let mut pauses = policy.pauses.iter();
            for tried in 1.. {
                let limit = queue.allowed(policy.try_limit).ok_or(NO_TIME)?;
                let failure = match post(url, &job.json, limit) {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                };
                match (failure, pauses.next()) {
                    (Failure::Final(why), _) => return Err(why),
                    (Failure::Passing(why), None) => {
                        return Err(format!("{why}; tried {tried} times"));
                    }
                    (Failure::Passing(why), Some(&pause)) => {
                        tracing::info!(to = shown_url(url), "notify: {why}; will be tried again");
                        queue.pause(pause, policy.last_pause);
                    }
                }
            }
            Ok(())
        }
    }
}

/// What came of one try, in words without the URL.
#[derive(Debug)]
enum Failure {
    /// It may go better later.
    Passing(String),
    /// It will not.
    Final(String),
}

fn post(url: &str, json: &str, limit: Duration) -> Result<(), Failure> {
    use ureq::tls::{RootCerts, TlsConfig};
    // A new one for each: notifications are rare, and a connection kept open for the next would be closed by then.
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        // A POST that is sent elsewhere becomes a GET, or is sent where nobody meant it to go.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("farside/", env!("CARGO_PKG_VERSION")))
        .tls_config(
            TlsConfig::builder()
                .root_certs(RootCerts::PlatformVerifier)
                .build(),
        )
        .build()
        .new_agent();
    let answer = agent
        .post(url)
        .content_type("application/json")
        .send(json)
        .map_err(|error| failure(&error, limit))?;
    match answer.status().as_u16() {
        200..=299 => Ok(()),
        status @ (408 | 429 | 500..=599) => {
            Err(Failure::Passing(format!("the server answered {status}")))
        }
        status @ 300..=399 => Err(Failure::Final(format!(
            "the server answered {status}: it wants another URL; give that one to `notify`"
        ))),
        status => Err(Failure::Final(format!("the server answered {status}"))),
    }
}

fn failure(error: &ureq::Error, limit: Duration) -> Failure {
    match error {
        // Their own texts may quote the URL.
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            Failure::Final("this is no URL that something can be sent to".to_owned())
        }
        ureq::Error::InvalidProxyUrl => {
            Failure::Final("the proxy in the environment has no valid URL".to_owned())
        }
        ureq::Error::Timeout(_) => {
            Failure::Passing(format!("no answer within {:.1} s", limit.as_secs_f64()))
        }
        ureq::Error::HostNotFound => Failure::Passing("its host is not found".to_owned()),
        other => Failure::Passing(other.to_string()),
    }
}

/// Whether `notify` means a URL rather than a command.
pub(super) fn is_url(to: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| {
        to.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    })
}

/// Scheme and host. User info, path and query can each be what lets one in.
pub(super) fn shown_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let host = rest[..end].rsplit('@').next().unwrap_or_default();
    let more = if end < rest.len() { "/..." } else { "" };
    format!("{scheme}://{host}{more}")
}
