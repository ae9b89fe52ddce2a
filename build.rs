//! Generates man pages and shell completions from the definition of the command line, so that they
//! never disagree with it. The binary embeds them: `alacrity man`, `alacrity completions`.

use std::error::Error;
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

#[path = "src/cli/args.rs"]
#[allow(
    dead_code,
    reason = "only the definition is used here, not the parsed values"
)]
mod args;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/cli/args.rs");
    println!("cargo:rerun-if-changed=src/cli/bench_args.rs");
    println!("cargo:rerun-if-changed=src/cli/help.rs");
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    let out = Path::new(&out);
    let command = args::Cli::command();
    completions(&command, &out.join("completions"))?;
    man_pages(command, out)
}

fn completions(command: &clap::Command, dir: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(dir)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command.clone(), "alacrity", dir)?;
    }
    Ok(())
}

/// Writes the pages, and `man_pages.rs`: a slice of their names and texts, sorted by name.
fn man_pages(command: clap::Command, out: &Path) -> Result<(), Box<dyn Error>> {
    let dir = out.join("man");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    clap_mangen::generate_to(command, &dir)?;
    let mut pages = Vec::new();
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        let name = path.file_name().ok_or("a file has a name")?.to_owned();
        pages.push(format!("({name:?}, include_str!({path:?}))"));
    }
    pages.sort();
    fs::write(
        out.join("man_pages.rs"),
        format!("&[{}]", pages.join(",\n")),
    )?;
    Ok(())
}
