//! `farside upgrade-host`: another farside goes on with a session that runs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use super::client::{Progress, ask, block_on, quiet_hello, require_live};
use super::{Exit, Output, find_session};
use crate::launcher::reach;
use crate::session::event::Command;
use crate::state_dir::Session;

/// How long the new host may take to be there: it only reads the journal's last part.
const REPLACED_TIMEOUT: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Let this farside go on with a session that another build has started.
///
/// The engine runs on, its output is held meanwhile, and frontends stay attached. Only the session's host is replaced:
/// its keeper, which does next to nothing, stays what it is until the session ends.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example, after a new farside was installed:\n  farside ls --json | jq -r '.[].id' | xargs -n 1 farside upgrade-host"
)]
pub struct Args {
    /// Id, beginning of an id, or name
    pub session: String,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let session = find_session(&args.session)?;
    require_live(&session)?;
    let program = own_program()?;
    let name = &session.json.name;
    let progress = Progress::new(format!("replacing the host of {name}"));
    let (before, after) = block_on(upgrade(&session, program))?;
    drop(progress);
    out.message(&format!(
        "{name} goes on with farside {after} (it was {before})"
    ));
    Ok(Exit::Done)
}

/// This very program, by a path that stays when it is run.
fn own_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("this program's own path is not known")?;
    anyhow::ensure!(
        program.is_file(),
        "{} is not there any more: this farside was replaced or removed while it ran; run the new one",
        program.display()
    );
    Ok(program)
}

/// Replaces the host and waits for the next one. Both versions.
async fn upgrade(session: &Session, program: PathBuf) -> anyhow::Result<(String, String)> {
    let id = &session.json.id;
    let before = session.facts().host_pid;
    let mut stream = reach::open(session, &quiet_hello("upgrade-host")).await?;
    let old = stream.welcome.farside.clone();
    let program = program
        .into_os_string()
        .into_string()
        .map_err(|path| anyhow::anyhow!("the path {} is not UTF-8", path.display()))?;
    ask(&mut stream, session, Command::UpgradeHost { program })
        .await
        .with_context(|| format!("the host of {id} (farside {old}) was not replaced"))?;
    drop(stream);
    let until = Instant::now() + REPLACED_TIMEOUT;
    loop {
        let now = session.facts().host_pid;
        if now.is_some() && now != before {
            let stream = reach::open(session, &quiet_hello("upgrade-host")).await?;
            return Ok((old, stream.welcome.farside));
        }
        anyhow::ensure!(
            Instant::now() < until,
            "the host of {id} has made room, but no other one came within {} s; its log is {}",
            REPLACED_TIMEOUT.as_secs(),
            session.dir.host_log().display()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
