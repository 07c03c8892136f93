//! `secure-router deal`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use secure_router::dealer::Dealer;
use secure_router::provision;

#[derive(Args)]
pub(crate) struct Deal {
    /// The dealer's key file.
    #[arg(long, default_value = "keys/dealer.json")]
    keys: PathBuf,
    /// Where the counters that were dealt are kept.
    #[arg(long, default_value = "dealer.redb")]
    store: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7431")]
    listen: String,
    #[command(flatten)]
    waits: crate::serve::Waits,
}

impl Deal {
    pub(crate) fn run(self) -> Result<()> {
        self.waits.watch_stdin();
        let keys = provision::read(&self.keys)?;
        let dealer = Arc::new(Dealer::new(keys, &self.store, self.waits.patience())?);
        crate::runtime()?.block_on(async {
            dealer.run(crate::listen(&self.listen).await?).await;
            Ok(())
        })
    }
}
