//! `pendguard top`.
#![forbid(unsafe_code)]

mod state;
mod view;

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use self::state::{App, Next};
use super::report::Report;
use super::{block_on, complain};
use crate::api::client::{Asker, ClientError};
use crate::cli::TopArgs;

/// Keys that wait to be looked at, at most.
const KEYS: usize = 64;

/// Standard output can't be drawn on.
#[derive(Debug, thiserror::Error)]
#[error(
    "standard output is no terminal; `pendguard status` shows the same once, and `pendguard status --json` to scripts"
)]
struct NoTerminal;

/// Shows the table until it is told to end. 0, or 1 if that isn't possible.
pub fn run(arguments: &TopArgs) -> u8 {
    match show(arguments) {
        Ok(()) => 0,
        Err(error) => {
            complain(&error);
            1
        }
    }
}

fn show(arguments: &TopArgs) -> anyhow::Result<()> {
    if !io::stdout().is_terminal() {
        return Err(NoTerminal.into());
    }
    // https://no-color.org: present and not empty.
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let terminal = ratatui::try_init()
        // Half of it may have been taken.
        .inspect_err(|_| drop(ratatui::try_restore()))
        .context("can't take the terminal")?;
    let terminal = Terminal(terminal);
    let app = App::new(colours);
    // The terminal is given back before anybody reads of an error.
    block_on(live(terminal, app, arguments))?
}

/// The terminal, which is given back however this ends. A panic gives it back first and is told then.
struct Terminal(DefaultTerminal);

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn live(mut terminal: Terminal, mut app: App, arguments: &TopArgs) -> anyhow::Result<()> {
    let mut keys = keys()?;
    let mut answers = answers(arguments.api_socket.clone(), arguments.interval);
    let mut signals = Signals::new()?;
    loop {
        terminal
            .0
            .draw(|frame| view::draw(frame, &mut app))
            .context("can't draw")?;
        tokio::select! {
            event = keys.recv() => {
                let mut event = event.context("the terminal can't be read any more")?;
                // Whatever waits is looked at before the next picture: what is pasted must not be drawn letter by letter.
                loop {
                    if next(&mut app, &event) == Next::Quit {
                        return Ok(());
                    }
                    match keys.try_recv() {
                        Ok(more) => event = more,
                        Err(_) => break,
                    }
                }
            }
            answer = answers.recv() => match answer.context("the part that asks the agent has ended")? {
                Ok(report) => app.answered(report, Instant::now()),
                Err(error) => app.failed(error.to_string(), Instant::now()),
            },
            () = signals.any() => return Ok(()),
        }
    }
}

fn next(app: &mut App, event: &Event) -> Next {
    match event {
        Event::Key(key) if !key.is_release() => app.key(*key),
        // A new size needs a new picture and nothing else.
        _ => Next::Draw,
    }
}

/// What is typed. It is read on a thread of its own, which ends with the process.
fn keys() -> anyhow::Result<mpsc::Receiver<Event>> {
    let (sender, receiver) = mpsc::channel(KEYS);
    let read = move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("keys".to_owned())
        .spawn(read)
        .context("can't start a thread")?;
    Ok(receiver)
}

/// What the agent says, once an interval; an agent that takes longer is asked less often.
fn answers(path: PathBuf, interval: Duration) -> mpsc::Receiver<Result<Report, ClientError>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut asker = Asker::new(&path);
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let answer = asker.ask().await;
            let report = answer.map(|answers| Report::new(answers, SystemTime::now()));
            if sender.send(report).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// The signals that would end the process and leave the terminal as it is.
struct Signals([Signal; 4]);

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let install = |kind| signal(kind).context("can't wait for signals");
        Ok(Self([
            install(SignalKind::interrupt())?,
            install(SignalKind::terminate())?,
            install(SignalKind::hangup())?,
            install(SignalKind::quit())?,
        ]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup, quit] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use agent_common::abi::answers::Code;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::api::About;
    use crate::api::server::serve;
    use crate::api::socket::ApiSocket;
    use crate::engine::{Engine, Handle, fake};
    use crate::model::Replica;
    use crate::watch::Event as Told;

    /// Something to look at, and to measure `pendguard top` and `pendguard watch` against:
    /// `PENDGUARD_TEST_SOCKET=/tmp/p.sock cargo test -p pendguard --lib a_full_node -- --ignored`.
    #[tokio::test]
    #[ignore = "serves 250 replicas that call until it is killed"]
    async fn a_full_node_to_look_at() {
        let path = std::env::var_os("PENDGUARD_TEST_SOCKET").expect("PENDGUARD_TEST_SOCKET");
        let socket = ApiSocket::bind(path.as_ref()).await.unwrap();
        let mut snapshot = fake::empty();
        for i in 0..250 {
            let mut replica = fake::replica(Replica::Number(i % 10), 0);
            replica.identity.workload = format!("orders-{:02}", i / 10);
            replica.identity.pod = format!("orders-{:02}-mv-{}-abcde", i / 10, i % 10);
            replica.since = SystemTime::now();
            snapshot.replicas.push(replica);
        }
        let engine = fake::Fake::new(snapshot);
        let handle = Handle::new(Arc::clone(&engine) as Arc<dyn Engine>);
        tokio::spawn(serve(
            socket,
            handle,
            About::now(),
            CancellationToken::new(),
        ));
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        for round in 0_u64.. {
            ticks.tick().await;
            let mut snapshot = engine.snapshot.lock().unwrap();
            let calling = snapshot.replicas.iter_mut().enumerate();
            for (i, replica) in calling.filter(|(i, _)| (*i as u64 + round).is_multiple_of(10)) {
                for count in replica.calls.values_mut() {
                    *count += 1;
                }
                // From 1 to 250 ms, differently each time.
                let took =
                    Duration::from_micros(1_000 + (i as u64 * 7_919 + round * 104_729) % 249_000);
                replica
                    .durations
                    .entry((0, Code::Ok))
                    .or_default()
                    .record(took);
                replica.pending = Some(i64::try_from(round).unwrap());
                let call = crate::watch::Call {
                    at: SystemTime::now(),
                    identity: Arc::new(replica.identity.clone()),
                    duration: Some(took),
                    pending: replica.pending,
                    ..fake::call(replica.identity.replica)
                };
                engine.hub.tell(Told::Call(Arc::new(call)));
            }
        }
    }
}
