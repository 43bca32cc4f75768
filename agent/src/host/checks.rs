//! What follows from the facts.
#![forbid(unsafe_code)]

use super::facts::{Cgroup, Facts, Known, TRACEFS};
use super::{Check, Need, Outcome, ProbeResult, ProgramProbe};
use crate::enforce::kernels::{Kernel, PREEMPTED};
use crate::tap::Enforcer;
use crate::tap::hooks::{EDITS, GATE, GATE_WALK, HOLDS, HOOKS, REWRITES, WALKS};

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Inodes of the initial namespaces; they are part of the kernel's interface (`include/linux/proc_ns.h`).
const INITIAL_USER_NAMESPACE: u64 = 0xeffffffd;
const INITIAL_PID_NAMESPACE: u64 = 0xeffffffc;

/// What to do in another pid namespace than the machine's.
pub const PID_NAMESPACE: &str = "Programs know processes by their numbers in the machine's own pid namespace, so from another one nothing would be \
     counted. In Kubernetes, set hostPID: true. A node that is a container itself (kind, k3d, minikube with a container driver) has a pid namespace \
     of its own: there, run the agent on the machine below it, with --discover proc.";

/// Whether a pid namespace of this inode is the machine's own.
pub const fn is_initial_pid_namespace(inode: u64) -> bool {
    inode == INITIAL_PID_NAMESPACE
}

/// The check of the programs on functions.
const FENTRY: &str = "fentry_programs";
/// Those of what each enforcer consists of, loaded for a trial.
const GATE_PROGRAMS: &str = "gate_programs";
const REWRITE_PROGRAMS: &str = "rewrite_programs";

/// The tap asks for a task's registers (`bpf_task_pt_regs`), which kernel commit dd6e10fbd9fb brought in 5.15.
const KERNEL: (u32, u32) = (5, 15);
/// From here on, BPF memory counts for the cgroup and not against `RLIMIT_MEMLOCK`.
const KERNEL_MEMCG: (u32, u32) = (5, 11);

/// All checks, in the order in which they are shown.
pub fn all(facts: &Facts, probe: Option<&ProbeResult>) -> Vec<Check> {
    let mut checks = vec![
        kernel(facts),
        architecture(facts.architecture),
        pid_namespace(facts),
        user_namespace(facts),
    ];
    checks.extend(capabilities(facts));
    checks.extend([
        btf(facts),
        tracefs(facts),
        tracepoints(facts),
        perf_event_paranoid(facts),
        lockdown(facts),
        unprivileged_bpf(facts),
        memlock(facts),
        jit(facts),
        cgroup(facts),
        gate_kernel(facts),
        gate_close_race(facts),
        net_admin(facts),
        bpffs(facts),
        pidfd_getfd(facts),
        holds(facts),
    ]);
    checks.extend(probe.map(|probe| Check {
        id: "tap_programs",
        needed_for: Need::Audit,
        outcome: probe.outcome,
        detail: probe.detail.clone(),
        consequence: unless(
            probe.outcome == Outcome::Supported,
            "The tap can't be loaded, so nothing can be observed.",
        ),
    }));
    checks.extend(probe.map(gate_programs));
    checks.extend(probe.map(rewrite_programs));
    checks.extend(probe.map(fentry));
    checks
}

/// Whether something is possible, and the ids of what stands in the way, or a sentence.
pub type Possible = (Outcome, Vec<String>);

/// Whether an enforcer is possible, where audit is `audit`.
pub fn enforcer(checks: &[Check], audit: Outcome, enforcer: Enforcer) -> Possible {
    if audit != Outcome::Supported {
        return (audit, vec!["it needs what audit needs".to_owned()]);
    }
    let (own, trial) = match enforcer {
        Enforcer::Gate => (Need::Gate, GATE_PROGRAMS),
        Enforcer::Rewrite => (Need::Rewrite, REWRITE_PROGRAMS),
    };
    let needed = || {
        checks
            .iter()
            .filter(|check| [Need::Enforcement, own].contains(&check.needed_for))
    };
    // What was not tried is not known.
    let tried = needed().any(|check| check.id == trial);
    let untried = if tried {
        Outcome::Supported
    } else {
        Outcome::Inconclusive
    };
    let worst = needed().map(|check| check.outcome).fold(untried, Ord::max);
    let because = needed()
        .filter(|check| check.outcome == worst && worst != Outcome::Supported)
        .map(|check| check.id.to_owned());
    (worst, because.collect())
}

/// Whether the tap can hang on functions.
pub fn fentry_tap(checks: &[Check]) -> Possible {
    match checks.iter().find(|check| check.id == FENTRY) {
        Some(check) if check.outcome == Outcome::Supported => (check.outcome, Vec::new()),
        Some(check) => (check.outcome, vec![FENTRY.to_owned()]),
        None => (Outcome::Inconclusive, vec!["not tried".to_owned()]),
    }
}

/// Whether audit is possible. Programs that have been loaded settle what could not be found out otherwise; what is
/// missing is missing all the same.
pub fn audit(checks: &[Check], probe: Option<&ProbeResult>) -> Outcome {
    let worst = checks
        .iter()
        .filter(|check| check.needed_for == Need::Audit)
        .map(|check| check.outcome)
        .max()
        .unwrap_or(Outcome::Inconclusive);
    let loaded = probe.is_some_and(|probe| probe.outcome == Outcome::Supported);
    match worst {
        Outcome::Inconclusive if loaded => Outcome::Supported,
        worst => worst,
    }
}

/// The consequence, unless all is well.
fn unless(well: bool, consequence: &str) -> String {
    if well {
        String::new()
    } else {
        consequence.to_owned()
    }
}

/// A check that audit needs, from something that is there or not.
fn required(id: &'static str, found: Known<(bool, String)>, consequence: &str) -> Check {
    let (outcome, detail) = match found {
        Ok((true, detail)) => (Outcome::Supported, detail),
        Ok((false, detail)) => (Outcome::NotSupported, detail),
        Err(reason) => (Outcome::Inconclusive, reason),
    };
    Check {
        id,
        needed_for: Need::Audit,
        outcome,
        detail,
        consequence: unless(outcome == Outcome::Supported, consequence),
    }
}

/// The same for what something else needs.
fn needed_for(
    need: Need,
    id: &'static str,
    found: Known<(bool, String)>,
    consequence: &str,
) -> Check {
    Check {
        needed_for: need,
        ..required(id, found, consequence)
    }
}

/// A check that explains.
fn information(id: &'static str, found: Known<String>, consequence: &str) -> Check {
    Check {
        id,
        needed_for: Need::Information,
        outcome: match found {
            Ok(_) => Outcome::Supported,
            Err(_) => Outcome::Inconclusive,
        },
        detail: found.unwrap_or_else(|reason| reason),
        consequence: consequence.to_owned(),
    }
}

/// `6.1.0-18-cloud-amd64` is (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel_at_least(facts: &Facts, wanted: (u32, u32)) -> Known<bool> {
    let release = facts.release.clone()?;
    let version = version(&release).ok_or_else(|| format!("{release:?} is no version"))?;
    Ok(version >= wanted)
}

fn kernel(facts: &Facts) -> Check {
    let found = kernel_at_least(facts, KERNEL).and_then(|enough| {
        let release = facts.release.clone()?;
        // Red Hat's kernels keep the old number and take over most of BPF: only a trial tells.
        if !enough && release.contains(".el") {
            return Err(format!("{release}, with changes of its distribution"));
        }
        Ok((enough, release))
    });
    required(
        "kernel",
        found,
        "The tap needs Linux 5.15 (bpf_task_pt_regs).",
    )
}

fn architecture(architecture: &str) -> Check {
    let known = ["x86_64", "aarch64"].contains(&architecture);
    required(
        "architecture",
        Ok((known, architecture.to_owned())),
        "The tap knows where x86_64 and aarch64 keep the arguments of a system call, and no others.",
    )
}

fn pid_namespace(facts: &Facts) -> Check {
    let found = facts.pid_namespace.clone().map(|inode| {
        let initial = is_initial_pid_namespace(inode);
        (
            initial,
            if initial {
                "the host's"
            } else {
                "one of its own"
            }
            .to_owned(),
        )
    });
    required("pid_namespace", found, PID_NAMESPACE)
}

fn user_namespace(facts: &Facts) -> Check {
    let found = facts.user_namespace.clone().map(|inode| {
        let initial = inode == INITIAL_USER_NAMESPACE;
        (
            initial,
            if initial {
                "the host's"
            } else {
                "one of its own"
            }
            .to_owned(),
        )
    });
    required(
        "user_namespace",
        found,
        "Capabilities of another user namespace than the host's don't allow tracing. In Kubernetes, leave hostUsers as \
         it is.",
    )
}

struct Capability {
    id: &'static str,
    name: &'static str,
    bit: u32,
    /// Another one that does as well.
    or: Option<(&'static str, u32)>,
    consequence: &'static str,
}

fn capabilities(facts: &Facts) -> Vec<Check> {
    const ADMIN: Option<(&str, u32)> = Some(("CAP_SYS_ADMIN", CAP_SYS_ADMIN));
    let always = [
        Capability {
            id: "cap_bpf",
            name: "CAP_BPF",
            bit: CAP_BPF,
            or: ADMIN,
            consequence: "Without it no program and no map can be loaded. Run as root, or give the capability.",
        },
        Capability {
            id: "cap_perfmon",
            name: "CAP_PERFMON",
            bit: CAP_PERFMON,
            or: ADMIN,
            consequence: "Without it no program may read what a process sends. Run as root, or give the capability.",
        },
        Capability {
            id: "cap_sys_ptrace",
            name: "CAP_SYS_PTRACE",
            bit: CAP_SYS_PTRACE,
            or: None,
            consequence: "Without it the environment of other users' processes can't be read, so no replica is found.",
        },
        Capability {
            id: "cap_dac_read_search",
            name: "CAP_DAC_READ_SEARCH",
            bit: CAP_DAC_READ_SEARCH,
            or: Some(("CAP_DAC_OVERRIDE", CAP_DAC_OVERRIDE)),
            consequence: "Without it /proc/<pid> of other users' processes can't be entered, so no replica is found.",
        },
    ];
    let mut checks: Vec<Check> = always.iter().map(|one| capability(facts, one)).collect();
    checks.push(sys_admin(facts));
    checks.push(sys_resource(facts));
    checks
}

fn has(facts: &Facts, bit: u32) -> Known<bool> {
    facts.capabilities.clone().map(|bits| bits & 1 << bit != 0)
}

fn capability(facts: &Facts, wanted: &Capability) -> Check {
    let found = has(facts, wanted.bit).and_then(|direct| {
        if direct {
            return Ok((true, format!("{} is there", wanted.name)));
        }
        match wanted.or {
            Some((name, bit)) if has(facts, bit)? => {
                Ok((true, format!("{name} stands in for {}", wanted.name)))
            }
            _ => Ok((false, format!("{} is missing", wanted.name))),
        }
    });
    required(wanted.id, found, wanted.consequence)
}

fn sys_admin(facts: &Facts) -> Check {
    let paranoid = matches!(facts.perf_event_paranoid, Ok(value) if value > 2);
    let unmounted = matches!(facts.tracefs, Ok(None));
    let found = has(facts, CAP_SYS_ADMIN).map(|there| match (there, paranoid, unmounted) {
        (true, ..) => (true, "CAP_SYS_ADMIN is there"),
        (false, true, _) => (false, "missing, and kernel.perf_event_paranoid is above 2"),
        (false, _, true) => (false, "missing, and tracefs has to be mounted"),
        (false, false, false) => (true, "missing, and not needed here for audit"),
    });
    required(
        "cap_sys_admin",
        found.map(|(enough, detail)| (enough, detail.to_owned())),
        "It is needed where kernel.perf_event_paranoid is above 2 (Debian, Ubuntu) or tracefs isn't mounted. Give it, or \
         lower the one and mount the other.",
    )
}

fn sys_resource(facts: &Facts) -> Check {
    let found = kernel_at_least(facts, KERNEL_MEMCG).and_then(|memcg| {
        Ok(match (memcg, has(facts, CAP_SYS_RESOURCE)?) {
            (true, _) => (true, "not needed since Linux 5.11"),
            (false, true) => (true, "CAP_SYS_RESOURCE is there"),
            (false, false) => (facts.memlock.is_none(), "CAP_SYS_RESOURCE is missing"),
        })
    });
    required(
        "cap_sys_resource",
        found.map(|(enough, detail)| (enough, detail.to_owned())),
        "Before Linux 5.11, maps count against RLIMIT_MEMLOCK, and raising it needs this.",
    )
}

fn btf(facts: &Facts) -> Check {
    let found = facts.btf.clone().map(|there| {
        let is = if there { "is" } else { "is not" };
        (there, format!("/sys/kernel/btf/vmlinux {is} there"))
    });
    required(
        "btf",
        found,
        "The kernel is built without CONFIG_DEBUG_INFO_BTF: programs can't ask for the current task.",
    )
}

fn tracefs(facts: &Facts) -> Check {
    let admin = matches!(has(facts, CAP_SYS_ADMIN), Ok(true));
    let found = facts.tracefs.clone().map(|mounted| match mounted {
        Some(point) => (true, format!("mounted on {}", point.display())),
        None if !facts.tracing => (
            false,
            format!("{TRACEFS} is not there: a kernel without tracing"),
        ),
        None if admin => (
            true,
            "not mounted; the agent mounts it where only it sees it".to_owned(),
        ),
        None => (false, "not mounted".to_owned()),
    });
    required(
        "tracefs",
        found,
        "The ids of tracepoints are read from it. Mount it: mount -t tracefs tracefs /sys/kernel/tracing",
    )
}

fn tracepoints(facts: &Facts) -> Check {
    let missing = facts.missing_tracepoints.as_deref().unwrap_or_default();
    let found = facts.missing_tracepoints.as_ref().map_err(Clone::clone);
    let found = found.map(|missing| {
        let places: Vec<&str> = missing.iter().map(|one| &*one.place).collect();
        match places[..] {
            [] => (true, "all are there".to_owned()),
            _ => (
                !missing.iter().any(|one| one.required),
                format!("missing: {}", places.join(", ")),
            ),
        }
    });
    let check = required(
        "tracepoints",
        found,
        "The tap hangs on the tracepoints of the send system calls (CONFIG_FTRACE_SYSCALLS) and of processes.",
    );
    if check.outcome != Outcome::Supported || missing.is_empty() {
        return check;
    }
    // It works, but not as well.
    let mut lost: Vec<&str> = missing.iter().map(|one| one.without).collect();
    lost.dedup();
    Check {
        consequence: format!("Without them: {}.", lost.join("; ")),
        ..check
    }
}

fn perf_event_paranoid(facts: &Facts) -> Check {
    let consequence = match facts.perf_event_paranoid {
        Ok(value) if value > 2 => {
            "Above 2, Debian's and Ubuntu's kernels want CAP_SYS_ADMIN for tracepoints."
        }
        _ => "",
    };
    let found = facts.perf_event_paranoid.clone();
    information(
        "perf_event_paranoid",
        found.map(|value| value.to_string()),
        consequence,
    )
}

fn lockdown(facts: &Facts) -> Check {
    let found = facts.lockdown.clone();
    match found.as_ref().map(Option::as_deref) {
        // It closes tracefs (LOCKDOWN_TRACEFS).
        Ok(Some("confidentiality")) => required(
            "lockdown",
            Ok((false, "confidentiality".to_owned())),
            "Under this lockdown nothing may be traced.",
        ),
        Ok(Some("integrity")) => information(
            "lockdown",
            Ok("integrity".to_owned()),
            "Audit and the gate are not affected. Programs may not write to processes, which rules out the rewrite enforcer.",
        ),
        _ => information(
            "lockdown",
            found.map(|mode| mode.unwrap_or_else(|| "the kernel has none".to_owned())),
            "",
        ),
    }
}

fn unprivileged_bpf(facts: &Facts) -> Check {
    let found = facts.unprivileged_bpf_disabled.clone();
    information(
        "unprivileged_bpf_disabled",
        found.map(|value| value.to_string()),
        "",
    )
}

fn memlock(facts: &Facts) -> Check {
    let limit = match facts.memlock {
        Some(octets) => format!("{} KiB", octets / 1024),
        None => "unlimited".to_owned(),
    };
    let detail = match kernel_at_least(facts, KERNEL_MEMCG) {
        Ok(true) => format!("{limit}; maps don't count against it since Linux 5.11"),
        Ok(false) | Err(_) => limit,
    };
    information("rlimit_memlock", Ok(detail), "")
}

fn jit(facts: &Facts) -> Check {
    let consequence = match facts.bpf_jit_enable {
        Ok(0) => {
            "Programs are interpreted: each send of a watched process costs several times as much."
        }
        _ => "",
    };
    let found = facts.bpf_jit_enable.clone().map(|value| match value {
        0 => "off".to_owned(),
        _ => "on".to_owned(),
    });
    information("bpf_jit", found, consequence)
}

fn known_kernel(facts: &Facts) -> Known<Kernel> {
    let release = facts.release.clone()?;
    let version = facts.version.clone().unwrap_or_default();
    Kernel::parse(&release, &version).ok_or_else(|| format!("{release:?} is no version"))
}

fn gate_kernel(facts: &Facts) -> Check {
    let (outcome, why) = match known_kernel(facts) {
        Ok(kernel) => {
            let (outcome, why) = kernel.gate();
            (outcome, why.to_owned())
        }
        Err(reason) => (Outcome::Inconclusive, reason),
    };
    let well = outcome == Outcome::Supported;
    Check {
        id: "gate_kernel",
        needed_for: Need::Gate,
        outcome,
        detail: if well {
            "nothing is known against the gate on this kernel".to_owned()
        } else {
            why
        },
        consequence: unless(
            well,
            "The gate puts Unix sockets into a socket map. It is not used on a kernel that is known to do that unsafely: \
             update the kernel (6.1.72, 6.6.5, 6.7 or later).",
        ),
    }
}

/// Most kernels in use have this bug: it is told, and refuses nothing.
fn gate_close_race(facts: &Facts) -> Check {
    let outcome = known_kernel(facts).map_or(Outcome::Inconclusive, Kernel::close_race);
    let detail = match outcome {
        Outcome::Supported => "CVE-2026-43016 is fixed in this kernel",
        Outcome::Inconclusive => "not known whether CVE-2026-43016 is fixed",
        Outcome::NotSupported => "not known to be fixed: CVE-2026-43016",
    };
    Check {
        id: "gate_close_race",
        needed_for: Need::Information,
        outcome,
        detail: detail.to_owned(),
        consequence: unless(
            outcome == Outcome::Supported,
            "A send to a gated source that is just ending may read freed kernel memory. Fixed in 6.6.134, 6.12.81, 6.18.22, \
             6.19.12 and 7.0; ask your distribution.",
        ),
    }
}

fn net_admin(facts: &Facts) -> Check {
    let found = has(facts, CAP_NET_ADMIN).map(|there| {
        let is = if there { "is there" } else { "is missing" };
        (there, format!("CAP_NET_ADMIN {is}"))
    });
    needed_for(
        Need::Gate,
        "cap_net_admin",
        found,
        "Without it no socket map can be made, and the gate has nowhere to stand. Give the capability. An audit doesn't need it.",
    )
}

fn bpffs(facts: &Facts) -> Check {
    let pins = &facts.pin_dir;
    let path = pins.path.display();
    let found = match (&pins.not_mountable, has(facts, CAP_SYS_ADMIN)) {
        _ if pins.bpffs => Ok((true, format!("{path} is on one"))),
        (Some(why), _) => Ok((false, format!("{path} is not on one: {why}"))),
        (None, Ok(true)) => Ok((
            true,
            "not mounted; the agent mounts it when it is to enforce".to_owned(),
        )),
        (None, Ok(false)) => Ok((
            false,
            "not mounted, and CAP_SYS_ADMIN is missing".to_owned(),
        )),
        (None, Err(reason)) => Err(reason),
    };
    needed_for(
        Need::Enforcement,
        "bpffs",
        found,
        "Enforcement is pinned, so that it outlives the agent. Mount one: mount -t bpf bpf /sys/fs/bpf. In a container, mount \
         the host's /sys/fs/bpf. Audit pins nothing.",
    )
}

fn pidfd_getfd(facts: &Facts) -> Check {
    let found = match &facts.pidfd_getfd {
        Ok(()) => (true, "works".to_owned()),
        Err(reason) => (false, reason.clone()),
    };
    needed_for(
        Need::Gate,
        "pidfd_getfd",
        Ok(found),
        "The source's end of a connection is found by this system call (and CAP_SYS_PTRACE). A seccomp profile may forbid it.",
    )
}

fn holds(facts: &Facts) -> Check {
    let found = match &facts.missing_holds {
        _ if facts.preempted == Ok(true) => Ok((false, PREEMPTED.to_owned())),
        Ok(missing) if missing.is_empty() => Ok((true, "all are there".to_owned())),
        Ok(missing) => {
            let places: Vec<&str> = missing.iter().map(|one| &*one.place).collect();
            Ok((false, format!("missing: {}", places.join(", "))))
        }
        // As with the tap's: the agent mounts it for itself, and a kernel that has the exits has the entries.
        Err(reason) if matches!(facts.tracefs, Ok(None)) => Ok((true, reason.clone())),
        Err(reason) => Err(reason.clone()),
    };
    needed_for(
        Need::Gate,
        "hold_tracepoints",
        found,
        "Sends are held at these while the gate joins their connection.",
    )
}

/// Whether the kernel takes the programs that are so chosen.
fn programs(probe: &ProbeResult, chosen: impl Fn(&ProgramProbe) -> bool) -> Known<(bool, String)> {
    let programs: Vec<_> = probe.programs.iter().filter(|p| chosen(p)).collect();
    let refused = programs.iter().find(|p| p.outcome != Outcome::Supported);
    match (programs.is_empty(), refused) {
        (true, _) => Err("not tried".to_owned()),
        (false, Some(program)) => {
            let hook = match &*program.hook {
                "" => String::new(),
                hook => format!(" ({hook})"),
            };
            Ok((false, format!("the kernel refuses {}{hook}", program.name)))
        }
        (false, None) => Ok((true, format!("the kernel takes all {}", programs.len()))),
    }
}

/// Whether a program hangs on a function, or continues one that does.
fn on_function(program: &ProgramProbe) -> bool {
    program.hook.starts_with("fentry") || program.hook.starts_with("fexit")
}

fn gate_programs(probe: &ProbeResult) -> Check {
    let found = programs(probe, |program| {
        [GATE, GATE_WALK.1].contains(&program.name)
            || HOLDS.iter().any(|hook| hook.program == program.name)
    });
    needed_for(
        Need::Gate,
        GATE_PROGRAMS,
        found,
        "The gate can't be loaded.",
    )
}

/// With tracepoints; where functions can be hooked, the kernel takes the others as well.
fn rewrite_programs(probe: &ProbeResult) -> Check {
    let found = programs(probe, |program| {
        !on_function(program)
            && (REWRITES.iter().any(|walk| walk.program == program.name)
                || EDITS.iter().any(|hook| hook.program == program.name))
    });
    needed_for(
        Need::Rewrite,
        REWRITE_PROGRAMS,
        found,
        "Programs that write to the memory of processes can't be loaded: it takes CAP_SYS_ADMIN, and a kernel without lockdown.",
    )
}

/// The tap's programs on functions, where it does without tracepoints of system calls.
fn fentry(probe: &ProbeResult) -> Check {
    let found = programs(probe, |program| {
        on_function(program)
            && (WALKS.iter().any(|walk| walk.program == program.name)
                || HOOKS.iter().any(|hook| hook.program == program.name))
    });
    needed_for(
        Need::Information,
        FENTRY,
        found,
        "The tap hangs on tracepoints, which put every system call of the node on the slow path. arm64's kernels can do without from 6.4 on.",
    )
}

fn cgroup(facts: &Facts) -> Check {
    let found = facts.cgroup.clone().map(|cgroup| {
        match cgroup {
            Cgroup::V2 => "v2",
            Cgroup::V1 => "v1",
            Cgroup::Hybrid => "v1, and v2 beside it",
            Cgroup::None => "not mounted",
        }
        .to_owned()
    });
    information("cgroup", found, "")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::host::ProgramProbe;
    use crate::host::facts::{Missing, PinDir};

    fn good() -> Facts {
        Facts {
            architecture: "x86_64",
            release: Ok("6.1.0-18-cloud-amd64".to_owned()),
            version: Ok("#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)".to_owned()),
            capabilities: Ok(u64::MAX),
            pid_namespace: Ok(INITIAL_PID_NAMESPACE),
            user_namespace: Ok(INITIAL_USER_NAMESPACE),
            btf: Ok(true),
            tracing: true,
            tracefs: Ok(Some(PathBuf::from(TRACEFS))),
            missing_tracepoints: Ok(Vec::new()),
            missing_holds: Ok(Vec::new()),
            preempted: Ok(false),
            pin_dir: PinDir {
                path: PathBuf::from("/sys/fs/bpf/pendguard"),
                bpffs: true,
                not_mountable: None,
            },
            pidfd_getfd: Ok(()),
            lockdown: Ok(Some("none".to_owned())),
            perf_event_paranoid: Ok(2),
            unprivileged_bpf_disabled: Ok(2),
            bpf_jit_enable: Ok(1),
            bpffs: Ok(None),
            cgroup: Ok(Cgroup::V2),
            memlock: Some(8 << 20),
        }
    }

    fn missing(required: bool) -> Missing {
        Missing {
            place: "syscalls/sys_exit_writev".to_owned(),
            without: "calls are not seen",
            required,
        }
    }

    fn outcome(facts: &Facts, id: &str) -> Outcome {
        let checks = all(facts, None);
        let check = checks.iter().find(|check| check.id == id).expect(id);
        // A problem says what follows.
        if check.needed_for != Need::Information {
            assert!(
                check.outcome == Outcome::Supported || !check.consequence.is_empty(),
                "{check:?}"
            );
        }
        check.outcome
    }

    fn audit_of(facts: &Facts) -> Outcome {
        audit(&all(facts, None), None)
    }

    #[test]
    fn a_good_node_can_audit() {
        assert_eq!(audit_of(&good()), Outcome::Supported);
    }

    fn gate_probe(outcome: Outcome) -> ProbeResult {
        let one = |name| ProgramProbe {
            name,
            hook: String::new(),
            outcome,
            detail: String::new(),
            verified_instructions: None,
        };
        ProbeResult {
            outcome: Outcome::Supported,
            detail: String::new(),
            programs: vec![one(GATE), one(GATE_WALK.1), one("hold_write")],
        }
    }

    fn enforcement_of(facts: &Facts, probe: &ProbeResult) -> Possible {
        let checks = all(facts, Some(probe));
        let of = |kind| enforcer(&checks, audit(&checks, Some(probe)), kind);
        let rewrite = of(Enforcer::Rewrite);
        if checks
            .iter()
            .any(|c| c.id == "bpffs" && c.outcome != Outcome::Supported)
        {
            assert_eq!(rewrite.1, ["bpffs"]);
        }
        of(Enforcer::Gate)
    }

    #[test]
    fn a_good_node_can_enforce() {
        let loads = gate_probe(Outcome::Supported);
        let possible = (Outcome::Supported, Vec::new());
        assert_eq!(enforcement_of(&good(), &loads), possible);
        // Lockdown is no obstacle, and neither is what the agent can mount.
        let mut facts = good();
        facts.lockdown = Ok(Some("integrity".to_owned()));
        facts.pin_dir.bpffs = false;
        facts.tracefs = Ok(None);
        facts.missing_tracepoints = Err("tracefs is not mounted".to_owned());
        facts.missing_holds = Err("tracefs is not mounted".to_owned());
        assert_eq!(enforcement_of(&facts, &loads), possible);
    }

    #[test]
    fn whatever_enforcement_lacks_leaves_audit_alone() {
        use Outcome::{Inconclusive, NotSupported};
        type Case = (&'static str, Outcome, fn(&mut Facts));
        let cases: Vec<Case> = vec![
            ("gate_kernel", NotSupported, |f| {
                f.release = Ok("5.15.148".to_owned());
                f.version = Ok(String::new());
            }),
            ("gate_kernel", Inconclusive, |f| {
                f.version = Ok(String::new())
            }),
            ("hold_tracepoints", NotSupported, |f| f.preempted = Ok(true)),
            ("cap_net_admin", NotSupported, |f| {
                f.capabilities = Ok(!(1 << CAP_NET_ADMIN))
            }),
            ("bpffs", NotSupported, |f| {
                f.pin_dir.bpffs = false;
                f.pin_dir.not_mountable = Some("in a container".to_owned());
            }),
            ("bpffs", NotSupported, |f| {
                f.pin_dir.bpffs = false;
                f.capabilities = Ok(!(1 << CAP_SYS_ADMIN));
            }),
            ("pidfd_getfd", NotSupported, |f| {
                f.pidfd_getfd = Err("not permitted".to_owned())
            }),
            ("hold_tracepoints", NotSupported, |f| {
                f.missing_holds = Ok(vec![missing(true)])
            }),
            ("hold_tracepoints", Inconclusive, |f| {
                f.missing_holds = Err("closed".to_owned())
            }),
        ];
        let loads = gate_probe(Outcome::Supported);
        for (id, expected, change) in cases {
            let mut facts = good();
            change(&mut facts);
            assert_eq!(outcome(&facts, id), expected, "{id} {facts:?}");
            assert_eq!(audit_of(&facts), Outcome::Supported, "{id}");
            let because = vec![id.to_owned()];
            assert_eq!(enforcement_of(&facts, &loads), (expected, because));
        }
        let refused = gate_probe(NotSupported);
        let because = vec!["gate_programs".to_owned()];
        assert_eq!(enforcement_of(&good(), &refused), (NotSupported, because));
        // No enforcement without audit.
        let mut facts = good();
        facts.btf = Ok(false);
        assert_eq!(enforcement_of(&facts, &loads).0, NotSupported);
        // A trial that was not made settles nothing.
        let checks = all(&good(), None);
        assert!(checks.iter().all(|check| check.id != "gate_programs"));
    }

    #[test]
    fn what_hangs_on_what_is_told_apart() {
        let one = |name, hook: &str, outcome| ProgramProbe {
            name,
            hook: hook.to_owned(),
            outcome,
            detail: String::new(),
            verified_instructions: None,
        };
        use Outcome::{Inconclusive, NotSupported, Supported};
        let mut probe = gate_probe(Supported);
        let checked = |probe: &ProbeResult| {
            let checks = all(&good(), Some(probe));
            (
                enforcer(&checks, Supported, Enforcer::Rewrite),
                fentry_tap(&checks).0,
            )
        };
        let not = |outcome, id: &str| (outcome, vec![id.to_owned()]);
        assert_eq!(
            checked(&probe),
            (not(Inconclusive, "rewrite_programs"), Inconclusive)
        );
        probe.programs.push(one("mend", "", Supported));
        probe.programs.push(one("mend", "fexit", NotSupported));
        probe
            .programs
            .push(one("tap_write", "fexit/__x64_sys_write", Supported));
        assert_eq!(checked(&probe), ((Supported, Vec::new()), Supported));
        probe
            .programs
            .push(one("edit_write", "syscalls/sys_enter_write", NotSupported));
        probe
            .programs
            .push(one("tap_open", "fexit, sockets", NotSupported));
        assert_eq!(
            checked(&probe),
            (not(NotSupported, "rewrite_programs"), NotSupported)
        );
    }

    #[test]
    fn names_are_unique() {
        let checks = all(&good(), None);
        let mut ids: Vec<_> = checks.iter().map(|check| check.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), checks.len());
    }

    #[test]
    fn whatever_audit_needs_and_lacks_is_named() {
        use Outcome::{Inconclusive, NotSupported};
        type Case = (&'static str, Outcome, fn(&mut Facts));
        let cases: Vec<Case> = vec![
            ("kernel", NotSupported, |f| {
                f.release = Ok("5.14.21".to_owned())
            }),
            ("kernel", NotSupported, |f| {
                f.release = Ok("4.19.0-26".to_owned())
            }),
            ("kernel", Inconclusive, |f| {
                f.release = Ok("5.14.0-427.el9.x86_64".to_owned())
            }),
            ("kernel", Inconclusive, |f| {
                f.release = Ok("linux".to_owned())
            }),
            ("kernel", Inconclusive, |f| {
                f.release = Err("gone".to_owned())
            }),
            ("architecture", NotSupported, |f| f.architecture = "riscv64"),
            ("pid_namespace", NotSupported, |f| {
                f.pid_namespace = Ok(4_026_532_000)
            }),
            ("pid_namespace", Inconclusive, |f| {
                f.pid_namespace = Err("no /proc".to_owned())
            }),
            ("user_namespace", NotSupported, |f| {
                f.user_namespace = Ok(4_026_532_000)
            }),
            ("cap_bpf", NotSupported, |f| f.capabilities = Ok(0)),
            ("cap_perfmon", NotSupported, |f| {
                f.capabilities = Ok(1 << CAP_BPF)
            }),
            ("cap_sys_ptrace", NotSupported, |f| {
                f.capabilities = Ok(1 << CAP_SYS_ADMIN)
            }),
            ("cap_dac_read_search", NotSupported, |f| {
                f.capabilities = Ok(1 << CAP_SYS_ADMIN)
            }),
            ("cap_bpf", Inconclusive, |f| {
                f.capabilities = Err("no /proc".to_owned())
            }),
            ("btf", NotSupported, |f| f.btf = Ok(false)),
            ("btf", Inconclusive, |f| f.btf = Err("no /sys".to_owned())),
            ("tracefs", NotSupported, |f| {
                f.tracefs = Ok(None);
                f.tracing = false;
            }),
            ("tracefs", NotSupported, |f| {
                f.tracefs = Ok(None);
                f.capabilities = Ok(1 << CAP_BPF);
            }),
            ("tracepoints", NotSupported, |f| {
                f.missing_tracepoints = Ok(vec![missing(true)])
            }),
            ("tracepoints", Inconclusive, |f| {
                f.missing_tracepoints = Err("closed".to_owned())
            }),
            ("lockdown", NotSupported, |f| {
                f.lockdown = Ok(Some("confidentiality".to_owned()))
            }),
        ];
        for (id, expected, change) in cases {
            let mut facts = good();
            change(&mut facts);
            assert_eq!(outcome(&facts, id), expected, "{id} {facts:?}");
            assert!(audit_of(&facts) >= expected, "{id}");
        }
    }

    #[test]
    fn a_tracepoint_that_can_be_done_without_is_told() {
        let mut facts = good();
        facts.missing_tracepoints = Ok(vec![missing(false)]);
        let check = tracepoints(&facts);
        assert_eq!(check.outcome, Outcome::Supported);
        assert_eq!(check.detail, "missing: syscalls/sys_exit_writev");
        assert_eq!(check.consequence, "Without them: calls are not seen.");
    }

    #[test]
    fn capabilities_that_stand_in() {
        let mut facts = good();
        facts.capabilities = Ok(1 << CAP_SYS_ADMIN | 1 << CAP_SYS_PTRACE | 1 << CAP_DAC_OVERRIDE);
        assert_eq!(audit_of(&facts), Outcome::Supported);
    }

    #[test]
    fn sys_admin_only_where_it_is_needed() {
        let least =
            1 << CAP_BPF | 1 << CAP_PERFMON | 1 << CAP_SYS_PTRACE | 1 << CAP_DAC_READ_SEARCH;
        let mut facts = good();
        facts.capabilities = Ok(least);
        assert_eq!(audit_of(&facts), Outcome::Supported);
        facts.perf_event_paranoid = Ok(3);
        assert_eq!(outcome(&facts, "cap_sys_admin"), Outcome::NotSupported);
        facts.perf_event_paranoid = Ok(2);
        facts.tracefs = Ok(None);
        assert_eq!(outcome(&facts, "cap_sys_admin"), Outcome::NotSupported);
    }

    #[test]
    fn sys_resource_only_on_old_kernels() {
        let mut facts = good();
        facts.capabilities = Ok(!(1 << CAP_SYS_RESOURCE));
        assert_eq!(outcome(&facts, "cap_sys_resource"), Outcome::Supported);
        facts.release = Ok("5.10.0-28-amd64".to_owned());
        assert_eq!(outcome(&facts, "cap_sys_resource"), Outcome::NotSupported);
        facts.memlock = None;
        assert_eq!(outcome(&facts, "cap_sys_resource"), Outcome::Supported);
    }

    #[test]
    fn an_unmounted_tracefs_is_mounted_by_the_agent() {
        let mut facts = good();
        facts.tracefs = Ok(None);
        facts.missing_tracepoints = Err("tracefs is not mounted".to_owned());
        assert_eq!(outcome(&facts, "tracefs"), Outcome::Supported);
        // Whether the tracepoints are in it, only a trial tells.
        assert_eq!(audit_of(&facts), Outcome::Inconclusive);
    }

    #[test]
    fn what_only_explains_decides_nothing() {
        let mut facts = good();
        for known in [
            &mut facts.perf_event_paranoid,
            &mut facts.unprivileged_bpf_disabled,
            &mut facts.bpf_jit_enable,
        ] {
            *known = Err("unknown".to_owned());
        }
        facts.lockdown = Err("securityfs is not mounted".to_owned());
        facts.bpffs = Err("unknown".to_owned());
        facts.cgroup = Err("unknown".to_owned());
        assert_eq!(outcome(&facts, "lockdown"), Outcome::Inconclusive);
        assert_eq!(audit_of(&facts), Outcome::Supported);
    }

    #[test]
    fn a_trial_settles_what_is_open_and_nothing_else() {
        let probe = |outcome| ProbeResult {
            outcome,
            detail: "tried".to_owned(),
            programs: Vec::new(),
        };
        let with =
            |facts: &Facts, probe: &ProbeResult| audit(&all(facts, Some(probe)), Some(probe));
        let mut open = good();
        open.release = Ok("5.14.0-427.el9.x86_64".to_owned());
        let mut bad = good();
        bad.pid_namespace = Ok(1);
        let (loads, fails) = (probe(Outcome::Supported), probe(Outcome::NotSupported));
        assert_eq!(with(&good(), &loads), Outcome::Supported);
        assert_eq!(with(&open, &loads), Outcome::Supported);
        assert_eq!(with(&bad, &loads), Outcome::NotSupported);
        assert_eq!(with(&good(), &fails), Outcome::NotSupported);
        let unsure = probe(Outcome::Inconclusive);
        assert_eq!(with(&good(), &unsure), Outcome::Inconclusive);
    }

    #[test]
    fn versions() {
        assert_eq!(version("6.1.0-18-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("5.15-rc1"), Some((5, 15)));
        assert_eq!(version("7.2+"), Some((7, 2)));
        assert_eq!(version("6"), None);
        assert_eq!(version(""), None);
    }
}
