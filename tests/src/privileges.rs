//! Programs that run as uid 0 with some capabilities and no more, as a container does whose securityContext drops all and adds these.

use anyhow::{Result, ensure};
use tokio::process::Command;

use crate::agent::binary;

/// What audit takes, as setpriv(1) names them.
pub const AUDIT: [&str; 4] = ["bpf", "perfmon", "sys_ptrace", "dac_read_search"];
/// What enforcement with the gate takes besides.
pub const GATE: &str = "net_admin";
/// What else audit takes where [`paranoid`].
pub const ADMIN: &str = "sys_admin";

/// The variable that says what `kernel.perf_event_paranoid` is on a machine that is made for the tests.
const PROMISED: &str = "PENDGUARD_TEST_PARANOID";

/// Whether the kernel keeps tracepoints from programs without CAP_SYS_ADMIN (a patch of Debian's and Ubuntu's).
///
/// # Errors
/// The setting can't be read, or isn't what PENDGUARD_TEST_PARANOID says: what is to be tested there would be left out.
pub fn paranoid() -> Result<bool> {
    let text = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")?;
    let found = text.trim();
    if let Ok(promised) = std::env::var(PROMISED) {
        ensure!(
            found == promised,
            "kernel.perf_event_paranoid is {found}, and {PROMISED} says {promised}"
        );
    }
    Ok(found.parse::<i64>()? > 2)
}

/// A command that ends in the agent's binary, and runs it with no capabilities but these and with nothing to be gained by running
/// another program. It has a tracefs: to mount one takes more than the agent has there.
///
/// # Errors
/// There is no binary.
pub fn with_only(capabilities: &[&str]) -> Result<Command> {
    const SCRIPT: &str = "mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing || exit; exec \"$@\"";
    let mut set = "-all".to_owned();
    for capability in capabilities {
        set.push_str(",+");
        set.push_str(capability);
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--"])
        .args(["sh", "-c", SCRIPT, "sh"])
        .args(["setpriv", "--no-new-privs", "--bounding-set", &set])
        .args(["--inh-caps", "-all", "--"])
        .arg(binary()?);
    Ok(command)
}
