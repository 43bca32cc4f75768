//! The same streams through real sockets with the gate before the source's end: the source reads what the host's walk makes of them, to the
//! last octet, and behind what no gate can follow, what was sent.

use std::path::Path;

use agent_common::abi::cases::IN_FRONT;
use agent_common::h2::track::status;
use agent_common::h2::walk::Conn;
use anyhow::{Context as _, Result, ensure};
use pendguard_tests::agent::{Agent, Pod};
use pendguard_tests::bpffs::BpfFs;
use pendguard_tests::enforcing::JOIN_LIMIT;
use pendguard_tests::faults::seen;
use pendguard_tests::kernel::preempts_tracepoints;
use pendguard_tests::raw::Raw;
use pendguard_tests::record::fixture::to_hex;
use pendguard_tests::scale::{Scale, scale};
use pendguard_tests::splitmix::SplitMix;
use pendguard_tests::wait::{wait_for, within};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};

use crate::host;
use crate::reference::table;
use crate::stream;

/// What agents reject.
const PENDING: &str = "/source.v1.Source/PendingFn";
/// A client's preface and its first frame.
const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A PING frame.
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0pendguar";

/// Streams, each on a connection of its own.
fn streams() -> u64 {
    match scale() {
        Scale::Full => 2_000,
        Scale::Fast => 400,
        Scale::Vm => 150,
    }
}

/// A connection of a process that is watched to this one, which is the source.
struct Connection<'a> {
    raw: &'a mut Raw,
    fd: String,
    end: UnixStream,
}

impl<'a> Connection<'a> {
    async fn open(raw: &'a mut Raw, listener: &UnixListener, path: &Path) -> Result<Self> {
        let fd = raw.run(&format!("dial {}", path.display())).await?;
        let (end, _) = within("a connection", JOIN_LIMIT, listener.accept()).await??;
        Ok(Self { raw, fd, end })
    }

    /// What the source reads of what is sent in one piece.
    async fn send(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let hex = to_hex(bytes);
        let sent = self
            .raw
            .run(&format!("send {} write {hex}", self.fd))
            .await?;
        ensure!(sent == bytes.len().to_string(), "{sent} of {}", bytes.len());
        let mut read = vec![0; bytes.len()];
        within(
            "all that was sent arrives",
            JOIN_LIMIT,
            self.end.read_exact(&mut read),
        )
        .await??;
        Ok(read)
    }

    /// Sends what is no request until the gate stands before the source's end. `conn` goes along.
    async fn until_gated(&mut self, agent: &Agent) -> Result<()> {
        wait_for("the connection is gated", JOIN_LIMIT, async || {
            let read = self.send(PING).await?;
            ensure!(read == PING, "{read:x?}");
            let gated = agent.scrape().await?.connections("gated");
            Ok((gated == Some(1)).then_some(()))
        })
        .await
    }

    async fn close(self, agent: &Agent) -> Result<()> {
        self.raw.run(&format!("close {}", self.fd)).await?;
        wait_for("the connection is forgotten", JOIN_LIMIT, async || {
            let gated = agent.scrape().await?.connections("gated");
            Ok((gated == Some(0)).then_some(()))
        })
        .await
    }
}

#[tokio::test]
async fn behind_the_gate_sockets_read_the_same() -> Result<()> {
    let bpffs = BpfFs::mount()?;
    let arguments = ["--mode", "enforce", "--enforcer", "gate"];
    let agent = Agent::start_at(&bpffs.pins(), &arguments).await;
    if preempts_tracepoints()? {
        let refused = agent.err().context("a gate where holds may be skipped")?;
        ensure!(
            refused.to_string().contains("may pass its hold unseen"),
            "{refused:?}"
        );
        return Ok(());
    }
    let agent = agent?;
    let mut raw = Raw::start(Pod::mono_vertex("streams", "1").numa()).await?;
    agent.until_watches(raw.pid().context("it runs")?).await?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("source.sock");
    let listener = UnixListener::bind(&path)?;
    let (table, substitutes) = (table([PENDING]), host::substitutes(&[PENDING]));
    let mut random = SplitMix::new(3);
    let (mut sends, mut edited, mut lost_count) = (0u64, 0u64, 0u64);
    for number in 0..streams() {
        let bytes = stream(&mut random);
        let mut connection = Connection::open(&mut raw, &listener, &path).await?;
        let read = connection.send(BEGIN).await?;
        ensure!(read == BEGIN, "{read:x?}");
        connection.until_gated(&agent).await?;
        let conn = Conn::new();
        conn.status.set(status::SYNCED);
        let mut begin = [&[0; IN_FRONT], BEGIN].concat();
        ensure!(host::buffer(&conn, &mut begin, &table, &substitutes) == Some(false));
        // What begins with a preface has had it.
        let mut rest = bytes.strip_prefix(&BEGIN[..24]).unwrap_or(&bytes);
        while !rest.is_empty() {
            // Few enough calls for the gate's walk, whatever they are.
            let longest = [40, 300][random.within(0..=1) as usize].min(rest.len() as u64);
            let (buffer, behind) = rest.split_at(random.within(1..=longest) as usize);
            rest = behind;
            let mut here = vec![0; IN_FRONT];
            here.extend(buffer);
            let Some(lost) = host::buffer(&conn, &mut here, &table, &substitutes) else {
                break;
            };
            let read = connection.send(buffer).await?;
            ensure!(
                read == here[IN_FRONT..],
                "stream {number}, {buffer:x?}: read {read:x?}, here {:x?}",
                &here[IN_FRONT..]
            );
            sends += 1;
            edited += u64::from(read != buffer);
            if lost {
                lost_count += 1;
                let mut garbage = Vec::new();
                random.fill(&mut garbage, 200);
                let read = connection.send(&garbage).await?;
                ensure!(read == garbage, "stream {number}, behind what is lost");
                break;
            }
        }
        connection.close(&agent).await?;
    }
    ensure!(
        edited > streams() / 50,
        "{edited} edits: nothing was tested"
    );
    ensure!(lost_count > 0, "no stream was lost: nothing was tested");
    raw.end().await?;
    agent.stop().await?;
    seen(
        "valid, damaged and random streams through sockets behind the gate",
        &format!(
            "{} connections, {sends} sends, {edited} of them edited, {lost_count} connections lost: as on the host, to the last octet",
            streams()
        ),
    )
}
