//! `pendguard top` in a terminal of 80×24, over an agent that counts calls of real sources.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, binary};
use pendguard_tests::peers::{ClientKind, SourceKind};
use pendguard_tests::replica::Replica;
use pendguard_tests::terminal::Terminal;
use tokio::process::Command;

/// The line of a replica of this workload.
fn line<'a>(lines: &'a [String], workload: &str) -> Option<&'a String> {
    lines.iter().find(|line| line.contains(workload))
}

/// The calls in a replica's line: behind workload, number, mode and rate there are those admitted, those that would be rejected, and those
/// that were.
fn verdicts(line: &str) -> Option<[u64; 3]> {
    let mut cells = line.split_whitespace().skip(4).map(str::parse);
    let mut next = || cells.next()?.ok();
    Some([next()?, next()?, next()?])
}

#[tokio::test]
async fn a_terminal_of_80_by_24() -> Result<()> {
    let agent = Agent::start(&[]).await?;
    let mut replicas = Vec::new();
    for (workload, number, every) in [("orders", 0, 20), ("invoices", 1, 100)] {
        let mut replica =
            Replica::start(workload, number, ClientKind::Tonic, SourceKind::Rust).await?;
        replica.client.every(Duration::from_millis(every)).await?;
        replicas.push(replica);
    }
    let mut command = Command::new(binary()?);
    command.args(["top", "--interval", "500ms", "--api-socket"]);
    command.arg(agent.socket());
    let mut terminal = Terminal::run(command, 24, 80)?;
    terminal
        .until("both replicas, with their calls by verdict", |lines| {
            let verdicts = |workload| line(lines, workload).and_then(|line| verdicts(line));
            verdicts("orders").is_some_and(|it| it[0] > 0 && it[1..] == [0, 0])
                && verdicts("invoices").is_some_and(|it| it[1] > 0 && [it[0], it[2]] == [0, 0])
        })
        .await?;
    ensure!(terminal.lines().len() == 24);
    // A filter leaves one of them out, and is taken back.
    terminal.press("/invo")?;
    terminal
        .until("the one that matches", |lines| {
            line(lines, "orders").is_none() && line(lines, "invoices").is_some()
        })
        .await?;
    terminal.press("\x1b")?;
    terminal
        .until("all again", |lines| line(lines, "orders").is_some())
        .await?;
    // Paused, nothing changes, though calls go on.
    terminal.press(" ")?;
    terminal
        .until("that it is paused", |lines| {
            lines
                .iter()
                .any(|line| line.to_lowercase().contains("paused"))
        })
        .await?;
    let paused = line(&terminal.lines(), "orders").context("orders")?.clone();
    let calls = |scrape: &pendguard_tests::agent::Scrape| replicas[0].counted(scrape);
    let before = calls(&agent.scrape().await?);
    agent
        .until("calls go on", |scrape| calls(scrape) > before + 60)
        .await?;
    let same = line(&terminal.lines(), "orders") == Some(&paused);
    ensure!(same, "{paused}: {:?}", terminal.lines());
    terminal.press(" ")?;
    terminal
        .until("something else", |lines| {
            line(lines, "orders").is_some_and(|line| *line != paused)
        })
        .await?;
    // A larger terminal is used.
    terminal.resize(30, 120)?;
    terminal
        .until("the whole width", |lines| {
            lines.len() == 30 && lines.iter().any(|line| line.chars().count() > 100)
        })
        .await?;
    terminal.press("q")?;
    terminal.ended().await?;
    agent.stop().await?;
    Ok(())
}
