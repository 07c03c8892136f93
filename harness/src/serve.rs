//! `secure-router serve`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use secure_router::link::Patience;
use secure_router::pool::Pool;
use secure_router::provision;
use secure_router::server::Service;
use secure_router_core::routing::Routing;

#[derive(Args)]
pub(crate) struct Serve {
    /// The server's key file.
    #[arg(long, default_value = "keys/server.json")]
    keys: PathBuf,
    /// The trained pool.
    #[arg(long, default_value = crate::demo::POOL)]
    pool: PathBuf,
    /// Where the stock of correlated randomness is kept.
    #[arg(long, default_value = "stock.redb")]
    stock: PathBuf,
    /// The dealer's address.
    #[arg(long, default_value = "127.0.0.1:7431")]
    dealer: String,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7430")]
    listen: String,
    /// Let devices learn every class's logit instead of the label: cheaper, and it tells them far more
    /// about the models.
    #[arg(long)]
    logits: bool,
    /// Who learns the router's choice: `open` (server and device), `private:EPSILON` (both, but the dealer makes it
    /// differentially private), or `device` (the device alone).
    #[arg(long, default_value = "open", value_parser = crate::policy::routing)]
    routing: Routing,
    /// Append what each run took to this file, a line of JSON per run.
    #[arg(long)]
    records: Option<PathBuf>,
    #[command(flatten)]
    waits: Waits,
}

/// When a party that answers gives a peer up.
#[derive(Args)]
pub(crate) struct Waits {
    /// Seconds that a peer may be silent inside an exchange.
    #[arg(long, default_value_t = Patience::default().exchange.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout_s: u64,
    /// Seconds that a peer may be silent between two requests.
    #[arg(long, default_value_t = Patience::default().idle.as_secs(), value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    idle_s: u64,
    /// End with whoever holds the other end of standard input.
    #[arg(long, hide = true)]
    while_stdin_is_open: bool,
}

impl Waits {
    /// Ends this process once standard input does, if that was asked for. Stores survive an end at any time.
    pub(crate) fn watch_stdin(&self) {
        if self.while_stdin_is_open {
            std::thread::spawn(|| {
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                std::process::exit(0);
            });
        }
    }

    pub(crate) const fn patience(&self) -> Patience {
        Patience { exchange: Duration::from_secs(self.timeout_s), idle: Duration::from_secs(self.idle_s) }
    }
}

impl Serve {
    pub(crate) fn run(self) -> Result<()> {
        self.waits.watch_stdin();
        let keys = provision::read(&self.keys)?;
        let pool = Pool::load(&self.pool)?;
        let pool = if self.logits { pool.with_logits() } else { pool }.with_routing(self.routing)?;
        crate::runtime()?.block_on(async {
            let mut service = Service::new(keys, pool, &self.stock, self.dealer, self.waits.patience())?;
            if let Some(path) = &self.records {
                service = service.record_to(path)?;
            }
            Arc::new(service).run(crate::listen(&self.listen).await?).await;
            Ok(())
        })
    }
}
