//! `farside config`: the settings, and where each comes from.

use super::render::{Tone, field, plain, table};
use super::{Exit, Output};
use crate::config::{Config, Flags, SETTINGS};

/// Show each setting, its value and where that comes from.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A flag wins over the environment (FARSIDE_IDLE_TIMEOUT and so on), which wins over config.toml\n\
                        in $XDG_CONFIG_HOME/farside, else ~/.config/farside:\n\n  \
                        idle_timeout = \"8h\"\n  max_lifetime = \"none\"\n\n\
                        That wins over /etc/farside/config.toml. Of all values of max_lifetime_cap the smallest counts."
)]
pub struct Args {
    /// Print a JSON list
    #[arg(long)]
    pub json: bool,
    /// Settings, as other commands would take them.
    #[command(flatten)]
    pub settings: Flags,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    let loaded = Config::load(&args.settings)?;
    for warning in &loaded.warnings {
        out.message(&format!("warning: {warning}"));
    }
    if args.json {
        out.json(&loaded.values)?;
        return Ok(Exit::Done);
    }
    let rows = loaded.values.iter().zip(SETTINGS).map(|(value, setting)| {
        let source = if value.source == "default" {
            Tone::Dim
        } else {
            Tone::Plain
        };
        vec![
            plain(value.key),
            plain(&value.value),
            field(&value.source, source),
            field(setting.about, Tone::Dim),
        ]
    });
    out.line(&table(
        &["SETTING", "VALUE", "~FROM", "~WHAT IT DOES"],
        rows.collect(),
        out.style,
    ))?;
    Ok(Exit::Done)
}
