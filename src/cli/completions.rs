//! `farside completions`: what a shell needs to complete our arguments.

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use super::{Cli, Exit, Output};

/// Print the completions of a shell.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farside completions bash > ~/.local/share/bash-completion/completions/farside\n  \
                        farside completions zsh > ~/.zfunc/_farside\n  \
                        farside completions fish > ~/.config/fish/completions/farside.fish"
)]
pub struct Args {
    /// Which shell
    pub shell: Shell,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Exit> {
    // Written to memory first: `generate` panics where a pipe is closed.
    let mut text = Vec::new();
    generate(args.shell, &mut Cli::command(), "farside", &mut text);
    std::io::Write::write_all(out.data(), &text)?;
    Ok(Exit::Done)
}
