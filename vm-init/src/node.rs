//! What a node has before anything runs on it.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::unix::fs as unix;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, sendto, socket};
use rustix::system::finit_module;
use vm_init::MODULES;

/// How long a device may take to appear after its driver.
const DEVICE_LIMIT: Duration = Duration::from_secs(20);

/// Where the root file system is until it is the root.
const NEW_ROOT: &str = "/root";

/// A file system to mount.
struct Mount {
    kind: &'static str,
    at: &'static str,
    options: &'static CStr,
}

const DEV: Mount = Mount {
    kind: "devtmpfs",
    at: "/dev",
    options: c"mode=755",
};

/// What is mounted on the root file system, in this order. No tracefs: the agent has to do without.
const NODE: [Mount; 9] = [
    Mount {
        kind: "proc",
        at: "/proc",
        options: c"",
    },
    Mount {
        kind: "sysfs",
        at: "/sys",
        options: c"",
    },
    DEV,
    Mount {
        kind: "tmpfs",
        at: "/dev/shm",
        options: c"mode=1777",
    },
    Mount {
        kind: "tmpfs",
        at: "/tmp",
        options: c"mode=1777",
    },
    Mount {
        kind: "tmpfs",
        at: "/run",
        options: c"mode=755",
    },
    Mount {
        kind: "securityfs",
        at: "/sys/kernel/security",
        options: c"",
    },
    Mount {
        kind: "cgroup2",
        at: "/sys/fs/cgroup",
        options: c"",
    },
    Mount {
        kind: "bpf",
        at: "/sys/fs/bpf",
        options: c"mode=700",
    },
];

impl Mount {
    fn perform(&self) -> Result<()> {
        // A directory of sysfs can't be made; if it isn't there, mounting says so.
        let _ = fs::create_dir_all(self.at);
        let options = (!self.options.is_empty()).then_some(self.options);
        mount(self.kind, self.at, self.kind, MountFlags::empty(), options)
            .with_context(|| format!("mounting {} at {}", self.kind, self.at))
    }
}

/// What it takes to find a device.
pub fn mount_early() -> Result<()> {
    DEV.perform()
}

/// Loads modules, in the order given.
pub fn load(modules: &[String]) -> Result<()> {
    for module in modules {
        let path = Path::new(MODULES).join(module);
        let context = || path.display().to_string();
        let file = File::open(&path).with_context(context)?;
        match finit_module(&file, &CString::default(), 0) {
            // It may be a part of this kernel.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(context),
        }
    }
    Ok(())
}

/// Makes the file system on `device` the root.
pub fn enter_root(device: &str) -> Result<()> {
    let deadline = Instant::now() + DEVICE_LIMIT;
    while !Path::new(device).exists() {
        ensure!(Instant::now() < deadline, "no {device}");
        thread::sleep(Duration::from_millis(10));
    }
    fs::create_dir_all(NEW_ROOT).context(NEW_ROOT)?;
    mount(device, NEW_ROOT, "ext4", MountFlags::NOATIME, None)
        .with_context(|| format!("mounting {device}"))?;
    // As switch_root does: the initramfs can't be left, only covered.
    std::env::set_current_dir(NEW_ROOT).context(NEW_ROOT)?;
    mount_move(".", "/").context("moving the root")?;
    unix::chroot(".").context("chroot")?;
    std::env::set_current_dir("/").context("/")?;
    Ok(())
}

/// Mounts what a node has.
pub fn mount_all() -> Result<()> {
    NODE.iter().try_for_each(Mount::perform)
}

/// Brings loopback up: its addresses come with that.
pub fn loopback_up() -> Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLMSG_ERROR: u16 = 2;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    // It is the first device of every network namespace.
    const LOOPBACK: u32 = 1;
    // struct nlmsghdr, then struct ifinfomsg: 32 bytes, all in the machine's own order.
    let mut request = Vec::with_capacity(32);
    request.extend(32_u32.to_ne_bytes());
    request.extend(RTM_NEWLINK.to_ne_bytes());
    request.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    request.extend([0; 8]); // sequence number, port
    request.extend([0; 4]); // family, padding, type
    request.extend(LOOPBACK.to_ne_bytes());
    request.extend(IFF_UP.to_ne_bytes()); // the flags
    request.extend(IFF_UP.to_ne_bytes()); // those that change
    // No protocol: number 0 of this family, which is NETLINK_ROUTE.
    let route = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&route, &request, SendFlags::empty(), &kernel)?;
    let mut answer = [0_u8; 128];
    let (length, _) = recv(&route, &mut answer, RecvFlags::empty())?;
    ensure!(length >= 20, "an answer of {length} bytes");
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    ensure!(kind == NLMSG_ERROR && error == 0, "{kind}: {error}");
    Ok(())
}
