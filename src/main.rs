//! The `alacrity` program: command line → configuration → VM → exit status.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use alacrity::bench::{
    CallCase, Case, Effort, FramesCase, ReclaimCase, RingCase, guests, instructions, over_time,
    results,
};
use alacrity::check;
use alacrity::cli::{
    self, BenchArgs, BenchCase, BenchCommand, CheckArgs, Cli, Command, HostArgs, LogLevel, RunArgs,
    VbusArgs, generated,
};
use alacrity::config::VmConfig;
use alacrity::exit::ExitStatus;
use alacrity::host::unmounter;
use alacrity::vm_cli::{self, VmCliError};
use alacrity::{console, host, vbus_cli, vmm};
use anyhow::{Context, anyhow};
use clap::Parser;
use tracing::Level;

/// A failure and the status that tells of it.
type Failure = (ExitStatus, anyhow::Error);

fn main() -> ExitCode {
    let started = Instant::now();
    if let Some(status) = unmounter::be_one_if_asked(std::env::args_os()) {
        return status.into();
    }
    restore_terminal_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error).into(),
    };
    start_log(cli.log_level);
    let outcome = match cli.command {
        Command::Run(args) => run(*args, started),
        Command::Check(args) => check(&args),
        Command::Bench(args) => bench(&args),
        Command::Host(args) => serve(&args),
        Command::Vbus(args) => administer(args),
        Command::Ps(args) => vms(vm_cli::ps(&args, &mut io::stdout())),
        Command::Stat(args) => vms(vm_cli::stat(&args, &mut io::stdout())),
        Command::Reclaim(args) => vms(vm_cli::reclaim(&args, &mut io::stdout())),
        Command::Target(args) => vms(vm_cli::target(&args)),
        Command::Memmap(args) => vms(vm_cli::memmap(&args, &mut io::stdout())),
        Command::Completions { shell } => print(generated::completions(shell)),
        Command::Man { dir: None } => print(generated::main_man_page()),
        Command::Man { dir: Some(dir) } => write_man_pages(&dir),
    };
    match outcome {
        Ok(status) => status,
        Err((status, error)) => {
            // Not `eprintln`, which panics when nobody listens any more.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            status
        }
    }
    .into()
}

/// A panic in any thread ends the program, with a terminal that works.
fn restore_terminal_on_panic() {
    let print_panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        console::restore_terminal();
        print_panic(info);
        std::process::exit(ExitStatus::HostError.code().into());
    }));
}

fn run(args: RunArgs, started: Instant) -> Result<ExitStatus, Failure> {
    let config = VmConfig::try_from(args).map_err(bad_input)?;
    vmm::run(&config, started).map_err(|error| (error.status(), error.into()))
}

fn check(args: &CheckArgs) -> Result<ExitStatus, Failure> {
    let report = check::report();
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)
            .map(|json| json + "\n")
            .map_err(|error| (ExitStatus::HostError, error.into()))?,
        false => report.to_string(),
    };
    print(&text)?;
    Ok(match report.can_run_linux {
        true => ExitStatus::Success,
        false => ExitStatus::CheckFailed,
    })
}

fn bench(args: &BenchArgs) -> Result<ExitStatus, Failure> {
    let host_error = |error| (ExitStatus::HostError, error);
    let case = match (&args.command, args.case) {
        (Some(BenchCommand::Report(args)), _) => {
            return results::command::run(args, &mut io::stdout())
                .map_err(|error| (error.status(), error.into()));
        }
        (Some(BenchCommand::Instructions(args)), _) => {
            return instructions::command::run(args, &mut io::stdout())
                .map_err(|error| (error.status(), error.into()));
        }
        (Some(command), _) => {
            let Some((what, args)) = command.guests() else {
                return Err(bad_input(anyhow!("nothing to measure was named")));
            };
            return guests::run(what, args, &mut io::stdout())
                .map_err(|error| (error.status(), error.into()));
        }
        (None, Some(case)) => case,
        (None, None) => return Err(bad_input(anyhow!("nothing to measure was named"))),
    };
    if let Some(path) = &args.draw {
        if case != BenchCase::Reclaim {
            return Err(bad_input(anyhow!(
                "--draw goes with `alacrity bench reclaim`"
            )));
        }
        let drawn = over_time::draw(path, &path.with_extension("svg"));
        drawn.map_err(|error| host_error(error.into()))?;
        return Ok(ExitStatus::Success);
    }
    let case: &dyn Case = match case {
        BenchCase::Ring => &RingCase,
        BenchCase::Call => &CallCase,
        BenchCase::Frames => &FramesCase,
        BenchCase::Reclaim => &ReclaimCase,
    };
    let effort = match args.quick {
        true => Effort::Quick,
        false => Effort::Full,
    };
    let report = case.run(effort).map_err(|error| host_error(error.into()))?;
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report).map_err(|e| host_error(e.into()))?;
        fs::write(path, json + "\n")
            .with_context(|| format!("cannot write {}; name another file", path.display()))
            .map_err(host_error)?;
    }
    print(&report.to_string())
}

fn serve(args: &HostArgs) -> Result<ExitStatus, Failure> {
    let ready = |line: &str| {
        // Nobody may want to know.
        let _ = print(line);
    };
    host::run(args, ready).map_err(|error| (error.status(), error.into()))
}

fn administer(args: VbusArgs) -> Result<ExitStatus, Failure> {
    vbus_cli::run(args, &mut io::stdout(), &mut io::stderr())
        .map_err(|error| (error.status(), error.into()))
}

fn vms(outcome: Result<ExitStatus, VmCliError>) -> Result<ExitStatus, Failure> {
    outcome.map_err(|error| (error.status(), error.into()))
}

fn bad_input(error: impl Into<anyhow::Error>) -> Failure {
    (ExitStatus::BadInput, error.into())
}

fn write_man_pages(dir: &Path) -> Result<ExitStatus, Failure> {
    fs::create_dir_all(dir)
        .with_context(|| format!("cannot make directory {}; name another", dir.display()))
        .map_err(bad_input)?;
    for (name, text) in generated::MAN_PAGES {
        let path = dir.join(name);
        fs::write(&path, text)
            .with_context(|| format!("cannot write {}; name another directory", path.display()))
            .map_err(bad_input)?;
    }
    Ok(ExitStatus::Success)
}

/// Prints to standard output; a reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<ExitStatus, Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err((
            ExitStatus::HostError,
            anyhow::Error::new(error).context("cannot write to standard output"),
        )),
        _ => Ok(ExitStatus::Success),
    }
}

/// Help and version go to standard output, bad usage to standard error in two lines.
fn usage(error: &clap::Error) -> ExitStatus {
    if error.use_stderr()
        && error.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    {
        let _ = write!(io::stderr(), "{}", cli::usage_error(error));
        return ExitStatus::BadInput;
    }
    match (error.print(), error.use_stderr()) {
        (Ok(()), false) => ExitStatus::Success,
        _ => ExitStatus::BadInput,
    }
}

fn start_log(level: LogLevel) {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It would report them to standard error, the very thing that failed, and panic.
        .log_internal_errors(false)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .init();
}
