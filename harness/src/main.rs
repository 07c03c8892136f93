//! The command line.

/// `println!` for commands: a reader that has gone is an error, not a panic; `main` ends quietly then.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        writeln!(std::io::stdout(), $($text)*).map_err(crate::unread)?
    }};
}

mod cost;
mod deal;
mod demo;
mod infer;
mod links;
mod measure;
mod parties;
mod policy;
mod report;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use secure_router::provision::{Budgets, provision_board, provision_with};

/// Private inference on microcontrollers: a device gets an answer about an input it never shows,
/// from models that the server never shows.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: demo::Demo,
}

#[derive(Subcommand)]
enum Command {
    /// Starts dealer, server and device on this machine and classifies real inputs (the default).
    Demo(demo::Demo),
    /// Makes the keys and seeds of a device, and of server and dealer where there are none.
    Provision(Provision),
    /// The dealer: makes correlated randomness for one server.
    Deal(deal::Deal),
    /// The server party.
    Serve(serve::Serve),
    /// The desktop device: prepares stock.
    Prepare(infer::Prepare),
    /// The desktop device: prepares on demand and classifies inputs.
    Device(infer::Device),
    /// Prints the cost model of a pool.
    Cost(cost::CostOf),
    /// Runs the protocol on a test split and reports what models and router are worth, as a page and as JSON.
    Report(report::Report),
    /// Measures the device party on boards in QEMU: bytes, stack, instructions.
    Measure(measure::Measure),
    /// The trainer, a program of its own: `cargo build --release -p secure-router-train`.
    #[command(disable_help_flag = true)]
    Train {
        /// Passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

#[derive(Args)]
struct Provision {
    /// Where the files of all parties are made; each then goes to its party alone.
    #[arg(long, default_value = "keys")]
    directory: PathBuf,
    /// Name of the new device.
    #[arg(long)]
    device: String,
    /// Answers that the server gives the device over its life; without a limit unless given.
    #[arg(long, value_name = "ANSWERS")]
    queries: Option<u64>,
    /// Epsilon that the device's routes may add up to over its life; without a limit unless given. The device then
    /// refuses open routing.
    #[arg(long, value_name = "EPSILON", value_parser = policy::epsilon)]
    budget: Option<u32>,
    /// Where to write the device's keys as firmware reads them: 136 bytes for a sector of the board's flash.
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SECURE_ROUTER_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ReaderLeft>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("secure-router: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever read standard output wants no more, as `head` does.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output")]
struct ReaderLeft;

fn unread(error: std::io::Error) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::BrokenPipe { ReaderLeft.into() } else { error.into() }
}

fn run(arguments: Arguments) -> Result<()> {
    match arguments.command.unwrap_or(Command::Demo(arguments.demo)) {
        Command::Demo(demo) => demo.run(),
        Command::Provision(provision) => {
            let Provision { directory, device, queries, budget: epsilon, firmware } = provision;
            let budgets = Budgets { queries, epsilon };
            let path = match firmware {
                Some(firmware) => provision_board(&directory, &device, budgets, &firmware)?,
                None => provision_with(&directory, &device, budgets)?,
            };
            say!("{}", path.display());
            Ok(())
        }
        Command::Deal(deal) => deal.run(),
        Command::Serve(serve) => serve.run(),
        Command::Prepare(prepare) => prepare.run(),
        Command::Device(device) => device.run(),
        Command::Cost(cost) => cost.run(),
        Command::Report(report) => report.run(),
        Command::Measure(measure) => measure.run(),
        Command::Train { arguments } => train(&arguments),
    }
}

/// Runs the trainer that was built beside this program. It is apart because of what it depends on.
fn train(arguments: &[std::ffi::OsString]) -> Result<()> {
    use anyhow::{Context, bail};
    let trainer = std::env::current_exe()?.with_file_name("secure-router-train");
    if !trainer.exists() {
        bail!("the trainer is not built: run `cargo build --release -p secure-router-train`");
    }
    let status = std::process::Command::new(&trainer).args(arguments).status().context("cannot start the trainer")?;
    // It has said what is wrong.
    if status.success() { Ok(()) } else { std::process::exit(status.code().unwrap_or(1)) }
}

/// A runtime for one party.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Binds, and says where on standard output, for people and for processes that wait for it.
async fn listen(address: &str) -> Result<tokio::net::TcpListener> {
    use std::io::Write;

    use anyhow::Context;
    let listener =
        tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    // A party serves whether or not anybody wants to know where.
    match writeln!(std::io::stdout(), "listening on {address}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(listener),
    }
}
