//! What tests of enforcement do and ask: calls that must all end alike, and modes at run time.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::agent::{Agent, Scrape};
use crate::peers::Client;
use crate::protocol::{Background, Method, Tally};
use crate::replica::Replica;
use crate::scale::amount;
use crate::wait::wait_for;

/// Messages a second that each replica reads and acknowledges meanwhile.
pub const RATE: u64 = 1000;
/// How long the gate may take before it stands: its aim is some milliseconds.
pub const JOIN_LIMIT: Duration = Duration::from_secs(20);

/// How many calls the source's server answered that it has no such method. An index from before enforcement is answered like a
/// call of `/`, for which grpc-go before 1.42 has another code.
#[must_use]
pub fn rejections(errors: &Tally) -> u64 {
    let codes = ["UNIMPLEMENTED", "RESOURCE_EXHAUSTED"].map(|code| errors.get(code));
    codes.into_iter().flatten().sum()
}

/// Calls until one is rejected: from there on each must be.
///
/// # Errors
/// None is, within [`JOIN_LIMIT`].
pub async fn until_rejected(replica: &mut Replica) -> Result<()> {
    wait_for("a call is rejected", JOIN_LIMIT, async || {
        let called = replica.client.call(Method::PendingFn, 1).await?;
        Ok((rejections(&called.errors) == 1).then_some(()))
    })
    .await
}

/// Calls until one is admitted.
///
/// # Errors
/// None is, within `limit`.
pub async fn until_admitted(replica: &mut Replica, limit: Duration) -> Result<()> {
    wait_for("a call is admitted", limit, async || {
        let called = replica.client.call(Method::PendingFn, 1).await?;
        Ok((called.ok == 1).then_some(()))
    })
    .await
}

/// Whether the enforcer is `rewrite`, as the agents are told by their environment; natively it is the gate.
#[must_use]
pub fn rewrites() -> bool {
    std::env::var_os("PENDGUARD_ENFORCER").is_some_and(|name| name == "rewrite")
}

/// `n` calls, of which each must end like that. Returns how many were admitted all the same: a source may be faster than the gate,
/// and read a call before the kernel shows it to the gate; that is rare.
///
/// # Errors
/// One didn't.
pub async fn all(replica: &mut Replica, n: u64, admitted: bool) -> Result<u64> {
    let before = replica.source.stats().await?.pending;
    let called = replica.client.call(Method::PendingFn, n).await?;
    let handled = replica.source.stats().await?.pending - before;
    let name = &replica.pod.name;
    if admitted {
        ensure!(
            called.ok == n && handled == n,
            "{name}: {called:?}, {handled} handled"
        );
        return Ok(0);
    }
    // Under emulation the moment in which it can be is much longer.
    let most = if rewrites() {
        0
    } else {
        n.div_ceil(amount(50, 4))
    };
    ensure!(
        rejections(&called.errors) + handled == n && called.ok == handled && handled <= most,
        "{name}: {called:?}, {handled} handled"
    );
    Ok(handled)
}

/// Ends the background, of which nothing may have been harmed.
///
/// # Errors
/// Something was.
pub async fn intact(replica: &mut Replica) -> Result<Background> {
    intact_of(&mut replica.client)
        .await
        .with_context(|| replica.pod.name.clone())
}

/// The same of a client that is no replica's.
///
/// # Errors
/// As of [`intact`].
pub async fn intact_of(client: &mut Client) -> Result<Background> {
    let background = client.background_off().await?;
    ensure!(
        background.intact && background.errors.is_empty() && background.messages > 0,
        "{background:?}"
    );
    Ok(background)
}

/// The verdicts of a replica's calls: admitted, rejected, unresolved.
#[must_use]
pub fn counts(replica: &Replica, scrape: &Scrape) -> [u64; 3] {
    let pod = &replica.pod.name;
    [
        scrape.pending(pod, "admitted"),
        scrape.pending(pod, "rejected"),
        scrape.unresolved(pod),
    ]
}

/// Sets the mode of every replica.
///
/// # Errors
/// The agent refuses.
pub async fn set_mode(agent: &Agent, mode: &str) -> Result<()> {
    let output = agent.command(&["mode", mode]).await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "mode {mode}: {error}");
    Ok(())
}
