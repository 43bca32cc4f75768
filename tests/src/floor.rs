//! Programs that do nothing (`agent-ebpf/src/floor.rs`): what their hooks cost and do by themselves, below which no program on the
//! same hooks can be.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::{MapData, SockMap};
use aya::programs::{SkSkb, TracePoint};
use rustix::mount::{MountFlags, mount};

use crate::bpffs::private_mounts;
use crate::peers::target_directory;

/// Where tracepoints are, if it is mounted.
const TRACEFS: &str = "/sys/kernel/tracing";

fn load() -> Result<Ebpf> {
    let path = std::env::var_os("PENDGUARD_BPF_FLOOR")
        .map_or_else(|| target_directory().join("bpf/floor.bpf.o"), PathBuf::from);
    Ebpf::load_file(&path)
        .with_context(|| format!("{} (cargo xtask build --tests makes it)", path.display()))
}

/// Sockets behind an sk_skb verdict program that passes everything. Dropped, they are taken out again: nothing may be under way then.
pub struct EmptyVerdict {
    // The sockets leave the map before the program does.
    _sockets: SockMap<MapData>,
    _object: Ebpf,
}

impl EmptyVerdict {
    /// Puts these sockets behind the program. They must be idle: what waits in a socket would be lost.
    ///
    /// # Errors
    /// Something waits in one, or the kernel refuses.
    pub fn before(sockets: &[OwnedFd]) -> Result<Self> {
        ensure!(!sockets.is_empty(), "there is no connection");
        let mut object = load()?;
        let map = object.take_map("FLOOR_SOCKETS").context("FLOOR_SOCKETS")?;
        let mut map = SockMap::try_from(map)?;
        let program: &mut SkSkb = object
            .program_mut("floor_verdict")
            .context("floor_verdict")?
            .try_into()?;
        program.load()?;
        program.attach(map.fd())?;
        for (index, socket) in (0..).zip(sockets) {
            let waiting = rustix::io::ioctl_fionread(socket)?;
            ensure!(waiting == 0, "{waiting} bytes wait in a socket");
            map.set(index, socket, 0).context("the socket map")?;
        }
        Ok(Self {
            _sockets: map,
            _object: object,
        })
    }
}

/// Programs that do nothing at tracepoints of system calls.
pub struct EmptyCalls {
    _object: Ebpf,
}

impl EmptyCalls {
    /// Attaches them to these, such as `sys_exit_write`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn on(tracepoints: &[&str]) -> Result<Self> {
        if !Path::new(TRACEFS).join("events").exists() {
            private_mounts()?;
            mount("tracefs", TRACEFS, "tracefs", MountFlags::empty(), None)
                .context("mounting a tracefs (it takes root)")?;
        }
        let mut object = load()?;
        let program: &mut TracePoint = object
            .program_mut("floor_call")
            .context("floor_call")?
            .try_into()?;
        program.load()?;
        for tracepoint in tracepoints {
            program
                .attach("syscalls", tracepoint)
                .with_context(|| (*tracepoint).to_owned())?;
        }
        Ok(Self { _object: object })
    }
}
