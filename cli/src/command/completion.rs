//! `completion`: a script for a shell, made of the command line's own definition.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;
use crate::output::print;

/// For which shell.
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// The shell; `source <(forebay completion bash)` makes it complete
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script.
pub fn run(args: CompletionArgs) -> anyhow::Result<()> {
    print(script(args.shell)?.trim_end())
}

fn script(shell: Shell) -> anyhow::Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "forebay", &mut script);
    Ok(String::from_utf8(script)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::Command;

    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_has_a_script_that_knows_the_verbs() {
        for shell in Shell::value_variants() {
            let script = script(*shell).unwrap();
            for verb in ["topic", "add-partitions", "cluster", "completion"] {
                assert!(script.contains(verb), "{shell}: {verb}");
            }
        }
    }

    /// What bash offers for the last word of a line.
    fn complete(words: &[&str]) -> Vec<String> {
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let last = words.len() - 1;
        let line = format!(
            "{}\nCOMP_WORDS=({}); COMP_CWORD={last}; _forebay forebay '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script(Shell::Bash).unwrap(),
            quoted.join(" "),
            words.last().copied().unwrap_or_default(),
            words.get(last.wrapping_sub(1)).copied().unwrap_or_default(),
        );
        let out = Command::new("bash")
            .args(["--norc", "-c", &line])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn bash_takes_the_script_and_completes_verbs_and_flags() {
        assert_eq!(complete(&["forebay", "topic", "add"]), ["add-partitions"]);
        assert_eq!(complete(&["forebay", "clu"]), ["cluster"]);
        assert_eq!(
            complete(&["forebay", "topic", "list", "--format", ""]),
            ["table", "json"]
        );
        assert!(complete(&["forebay", "topic", "alter", "--uns"]).contains(&"--unset".to_owned()));
    }
}
