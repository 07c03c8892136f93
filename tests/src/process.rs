//! Server and dealer as processes of their own, on loopback, for tests that end them.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use secure_router::provision;
use tempfile::TempDir;

use crate::POOL;

/// A party's process. It ends with this value, by `SIGKILL`.
struct Process {
    child: Child,
    address: String,
}

impl Process {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.env("SECURE_ROUTER_LOG", "off").stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        match line.trim().strip_prefix("listening on ") {
            Some(address) => Ok(Self { address: address.to_owned(), child }),
            None => {
                child.wait()?;
                bail!("{command:?} does not listen")
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A dealer's and a server's process, their keys, and what they keep.
pub struct Processes {
    directory: TempDir,
    program: PathBuf,
    routing: &'static str,
    dealer: Option<Process>,
    server: Option<Process>,
    dealer_address: String,
}

impl Processes {
    /// Starts both from `program`, the command line's executable, for devices of these names.
    ///
    /// # Errors
    /// Whatever keeps them from starting.
    pub fn start(program: &Path, devices: &[String]) -> Result<Self> {
        Self::start_routing(program, devices, "open")
    }

    /// The same, with a policy of routing.
    ///
    /// # Errors
    /// Whatever keeps them from starting.
    pub fn start_routing(program: &Path, devices: &[String], routing: &'static str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        for device in devices {
            provision::provision(directory.path(), device)?;
        }
        let mut processes = Self {
            directory,
            program: program.to_owned(),
            routing,
            dealer: None,
            server: None,
            // The server is told once, so a new dealer takes the old one's place.
            dealer_address: "127.0.0.1:0".to_owned(),
        };
        processes.start_dealer()?;
        processes.start_server()?;
        Ok(processes)
    }

    fn party(&self, command: &str, listen: &str, keys: &str) -> Command {
        let mut party = Command::new(&self.program);
        party.args([command, "--listen", listen, "--keys"]).arg(self.path(keys));
        party
    }

    fn start_dealer(&mut self) -> Result<()> {
        let mut command = self.party("deal", &self.dealer_address, "dealer.json");
        let dealer = Process::start(command.arg("--store").arg(self.path("dealer.redb")))?;
        self.dealer_address.clone_from(&dealer.address);
        self.dealer = Some(dealer);
        Ok(())
    }

    fn start_server(&mut self) -> Result<()> {
        let mut command = self.party("serve", "127.0.0.1:0", "server.json");
        command.args(["--pool", POOL, "--routing", self.routing, "--dealer", &self.dealer_address]);
        command.arg("--stock").arg(self.stock());
        self.server = Some(Process::start(&mut command)?);
        Ok(())
    }

    /// Kills the server, and starts another over what it kept.
    ///
    /// # Errors
    /// Whatever keeps it from starting.
    pub fn kill_server(&mut self) -> Result<()> {
        self.server = None;
        self.start_server()
    }

    /// Kills the dealer, and starts another over what it kept.
    ///
    /// # Errors
    /// Whatever keeps it from starting.
    pub fn kill_dealer(&mut self) -> Result<()> {
        self.dealer = None;
        self.start_dealer()
    }

    /// Where the server listens now.
    #[must_use]
    pub fn address(&self) -> String {
        self.server.as_ref().map(|server| server.address.clone()).unwrap_or_default()
    }

    /// Starts both again over what they kept.
    ///
    /// # Errors
    /// Whatever keeps them from starting.
    pub fn restart(&mut self) -> Result<()> {
        self.start_dealer()?;
        self.start_server()
    }

    /// Ends both; what they kept stays as it is.
    pub fn stop(&mut self) {
        (self.server, self.dealer) = (None, None);
    }

    /// Where keys and counters are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The server's store.
    #[must_use]
    pub fn stock(&self) -> PathBuf {
        self.path("stock.redb")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
