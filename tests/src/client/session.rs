//! One client, driven by commands.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tonic::transport::Channel;

use super::background::{Background, Pace};
use super::calls::{self, Callee, Ticker};
use super::connect;
use crate::payload::Verifier;
use crate::proto::source_client::SourceClient;
use crate::protocol::{Called, Command, Event};

/// A connected client and what it does in the background.
#[derive(Debug)]
pub struct Session {
    channel: Channel,
    client: SourceClient<Channel>,
    concurrency: usize,
    batch: u64,
    give_up: Option<Duration>,
    background: Option<Background>,
    ticker: Option<Ticker>,
    /// Where the last background stopped.
    verifier: Verifier,
}

impl Session {
    /// A session that does nothing yet.
    #[must_use]
    pub fn new(
        channel: Channel,
        concurrency: usize,
        batch: u64,
        give_up: Option<Duration>,
    ) -> Self {
        Self {
            client: connect::client(channel.clone()),
            channel,
            concurrency,
            batch,
            give_up,
            background: None,
            ticker: None,
            verifier: Verifier::default(),
        }
    }

    async fn call(&self, callee: Callee, count: u64) -> Result<Called> {
        calls::call(&self.channel, callee, count, self.concurrency, self.give_up).await
    }

    /// Does what a command says; `None` for [`Command::Quit`].
    ///
    /// # Errors
    /// The command makes no sense now, or reading can't start.
    pub async fn run(&mut self, command: Command) -> Result<Option<Event>> {
        Ok(Some(match command {
            Command::Call { method, count } => {
                let callee = Callee::Method(method);
                Event::Called(self.call(callee, count).await?)
            }
            Command::CallPath { path, count } => {
                let callee = Callee::Path(path.parse().context("the path")?);
                Event::Called(self.call(callee, count).await?)
            }
            Command::BackgroundOn { rate } => {
                ensure!(self.background.is_none(), "the background is on already");
                let pace = Pace {
                    batch: self.batch,
                    rate,
                };
                let verifier = std::mem::take(&mut self.verifier);
                self.background = Some(Background::start(&self.client, pace, verifier).await?);
                Event::Reading
            }
            Command::BackgroundOff => {
                let background = self.background.take().context("the background is off")?;
                let (report, verifier) = background.stop().await?;
                self.verifier = verifier;
                Event::Background(report)
            }
            Command::Every { millis } => {
                ensure!(self.ticker.is_none(), "an interval is set already");
                let period = Duration::from_millis(millis);
                self.ticker = Some(Ticker::start(self.client.clone(), period));
                Event::Ticking
            }
            Command::EveryOff => {
                let ticker = self.ticker.take().context("no interval is set")?;
                Event::Every(ticker.stop().await?)
            }
            Command::Quit => return Ok(None),
        }))
    }
}
