//! Which pod a process is in, told from the paths of its cgroups (`/proc/<pid>/cgroup`).
//!
//! The kubelet makes a cgroup a pod and names it by the pod's UID; the runtime makes one a container below it. Their names differ by
//! cgroup driver and runtime, the UID is in all of them:
//!
//! | driver | runtime | path |
//! |---|---|---|
//! | cgroupfs | containerd, Docker | `/kubepods/burstable/pod<uid>/<container>` |
//! | cgroupfs | CRI-O | `/kubepods/burstable/pod<uid>/crio-<container>` |
//! | systemd | containerd | `…/kubepods-burstable-pod<uid, _ for ->.slice/cri-containerd-<container>.scope` |
//! | systemd | CRI-O, Docker | the same, `crio-<container>.scope`, `docker-<container>.scope` |
//! | both at odds | containerd | `/system.slice/containerd.service/kubepods-burstable-pod<uid>.slice:cri-containerd:<container>` |
//!
//! Of an agent with a cgroup namespace of its own, paths begin at its own cgroup: `/../../pod<uid>/<container>`.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// A pod's UID, which no other object in the cluster has or will have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(u128);

/// What is no UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no UID of an object")]
pub struct NoUid;

/// As the API has it.
impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0;
        let part = |shift: u32, digits: u32| (n >> shift) & ((1 << (4 * digits)) - 1);
        let (a, b, c, d, e) = (
            part(96, 8),
            part(80, 4),
            part(64, 4),
            part(48, 4),
            part(0, 12),
        );
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PodUid {
    type Err = NoUid;

    fn from_str(text: &str) -> Result<Self, NoUid> {
        match uid(text) {
            Some((uid, "")) => Ok(uid),
            _ => Err(NoUid),
        }
    }
}

/// The UID that `text` begins with, and what follows it.
fn uid(text: &str) -> Option<(PodUid, &str)> {
    // 8-4-4-4-12 digits. The kubelet names pods that it has from files by a hash, without dashes.
    const DASHES: [usize; 4] = [8, 13, 18, 23];
    let bytes = text.as_bytes();
    let dashed = matches!(bytes.get(DASHES[0]), Some(b'-' | b'_'));
    let length = if dashed { 36 } else { 32 };
    let mut number = 0;
    for (at, &octet) in bytes.get(..length)?.iter().enumerate() {
        if dashed && DASHES.contains(&at) {
            // systemd takes a dash for a level of slices, so the kubelet writes another sign.
            if !matches!(octet, b'-' | b'_') {
                return None;
            }
            continue;
        }
        // Capitals are no part of it: one UID has one spelling.
        let digit = match octet {
            b'0'..=b'9' => octet - b'0',
            b'a'..=b'f' => octet - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(digit);
    }
    // All of it was ASCII.
    Some((PodUid(number), text.get(length..)?))
}

/// The pod of a process with these cgroups (the text of `/proc/<pid>/cgroup`). `None` where there is none, or where its hierarchies (v1)
/// name different ones.
pub fn pod_uid(cgroups: &str) -> Option<PodUid> {
    let mut found = None;
    for line in cgroups.split('\n') {
        // hierarchy:controllers:path, and the path may have colons in it.
        let Some(path) = line.splitn(3, ':').nth(2) else {
            continue;
        };
        match (pod_of(path), found) {
            (None, _) => {}
            (Some(pod), None) => found = Some(pod),
            (Some(pod), Some(other)) if pod == other => {}
            (Some(_), Some(_)) => return None,
        }
    }
    found
}

/// The *outermost* pod of a path: a container that may make cgroups below its own can name them as it likes.
fn pod_of(path: &str) -> Option<PodUid> {
    for part in path.split('/') {
        // Below it users of the host may make cgroups of any name (systemd's delegation).
        if part == "user.slice" {
            return None;
        }
        if let Some(pod) = pod_cgroup(part) {
            return Some(pod);
        }
    }
    None
}

/// The pod whose cgroup has this name: `pod<uid>`, or `<parents>-pod<uid>.slice`.
fn pod_cgroup(name: &str) -> Option<PodUid> {
    let after = |text| match uid(text)? {
        (pod, "" | ".slice") => Some(pod),
        (pod, rest) if rest.starts_with(".slice:") => Some(pod),
        _ => None,
    };
    match name.strip_prefix("pod") {
        Some(text) => after(text),
        None => name.split("-pod").skip(1).find_map(after),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "6d2b1a0c-5c3e-4f7a-9b1d-0e8f7a6b5c4d";
    const OTHER: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";
    const CONTAINER: &str = "8e5c4d1a9f0b7c6e2d3a1b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f80";

    fn of(text: &str) -> Option<String> {
        let text = text
            .replace("<uid>", UID)
            .replace("<uid_>", &UID.replace('-', "_"))
            .replace("<other>", OTHER)
            .replace("<cid>", CONTAINER);
        pod_uid(&text).map(|uid| uid.to_string())
    }

    /// Lines as nodes have them; only UIDs and containers' ids are put in.
    const PODS: &[(&str, &str)] = &[
        (
            "cgroup v2, systemd, containerd: EKS, GKE, AKS, kubeadm",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/cri-containerd-<cid>.scope\n",
        ),
        (
            "cgroup v2, systemd, containerd, guaranteed",
            "0::/kubepods.slice/kubepods-pod<uid_>.slice/cri-containerd-<cid>.scope\n",
        ),
        (
            "cgroup v2, systemd, containerd, best effort",
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid_>.slice/cri-containerd-<cid>.scope\n",
        ),
        (
            "cgroup v2, systemd, CRI-O: OpenShift",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/crio-<cid>.scope\n",
        ),
        (
            "CRI-O, a container of systemd's own",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/crio-<cid>.scope/container/init.scope\n",
        ),
        (
            "cgroup v2, systemd, Docker (cri-dockerd)",
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid_>.slice/docker-<cid>.scope\n",
        ),
        (
            "cgroup v2, cgroupfs, containerd",
            "0::/kubepods/burstable/pod<uid>/<cid>\n",
        ),
        (
            "cgroup v2, cgroupfs, guaranteed",
            "0::/kubepods/pod<uid>/<cid>\n",
        ),
        (
            "cgroup v2, cgroupfs, CRI-O",
            "0::/kubepods/burstable/pod<uid>/crio-<cid>\n",
        ),
        (
            "cgroup v1, cgroupfs, Docker",
            "12:pids:/kubepods/besteffort/pod<uid>/<cid>\n11:cpuset:/kubepods/besteffort/pod<uid>/<cid>\n\
             4:cpu,cpuacct:/kubepods/besteffort/pod<uid>/<cid>\n1:name=systemd:/kubepods/besteffort/pod<uid>/<cid>\n0::/system.slice/containerd.service\n",
        ),
        (
            "cgroup v1, systemd, containerd; the hierarchy of the runtime's own is elsewhere",
            "13:misc:/\n11:memory:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/cri-containerd-<cid>.scope\n\
             1:name=systemd:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/cri-containerd-<cid>.scope\n",
        ),
        (
            "containerd that has been left with cgroupfs under a kubelet with systemd",
            "0::/system.slice/containerd.service/kubepods-burstable-pod<uid_>.slice:cri-containerd:<cid>\n",
        ),
        (
            "the same on cgroup v1",
            "10:freezer:/system.slice/containerd.service/kubepods-besteffort-pod<uid_>.slice:cri-containerd:<cid>\n",
        ),
        (
            "kind: a kubelet within a container",
            "0::/docker/<cid>/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod<uid_>.slice/cri-containerd-<cid>.scope\n",
        ),
        (
            "kind, cgroupfs",
            "0::/docker/<cid>/kubelet/kubepods/burstable/pod<uid>/<cid>\n",
        ),
        ("k3s", "0::/kubepods/besteffort/pod<uid>/<cid>\n"),
        (
            "a cgroup namespace of the agent's own, cgroupfs, the same class",
            "0::/../../pod<uid>/<cid>\n",
        ),
        (
            "the same, another class",
            "0::/../../../besteffort/pod<uid>/<cid>\n",
        ),
        (
            "the same, systemd",
            "0::/../../kubepods-burstable-pod<uid_>.slice/cri-containerd-<cid>.scope\n",
        ),
        (
            "the same, systemd, guaranteed",
            "0::/../../../kubepods-pod<uid_>.slice/cri-containerd-<cid>.scope\n",
        ),
        (
            "the pod's own cgroup, as of a process that was put there by hand",
            "0::/kubepods/burstable/pod<uid>\n",
        ),
        (
            "a cgroup that the container made, named after another pod",
            "0::/kubepods/burstable/pod<uid>/<cid>/pod<other>/x\n",
        ),
        (
            "no newline at the end",
            "0::/kubepods/burstable/pod<uid>/<cid>",
        ),
    ];

    const NONE: &[(&str, &str)] = &[
        ("nothing", ""),
        ("a service", "0::/system.slice/kubelet.service\n"),
        ("init", "0::/init.scope\n"),
        ("the root", "0::/\n"),
        (
            "the agent's own, in a cgroup namespace of its own",
            "0::/\n1:name=systemd:/\n",
        ),
        ("a container without a pod", "0::/docker/<cid>\n"),
        ("podman", "0::/machine.slice/libpod-<cid>.scope/container\n"),
        (
            "a pod of podman's",
            "0::/machine.slice/machine-libpod_pod_<cid>.slice/libpod-<cid>.scope\n",
        ),
        (
            "what a user of the host has made",
            "0::/user.slice/user-1000.slice/user@1000.service/kubepods/pod<uid>/<cid>\n",
        ),
        (
            "hierarchies that don't agree",
            "2:cpu:/kubepods/pod<uid>/<cid>\n1:memory:/kubepods/pod<other>/<cid>\n",
        ),
        ("no path", "0:\nx\n::\n"),
        (
            "a UID that is too short",
            "0::/kubepods/pod6d2b1a0c-5c3e-4f7a-9b1d-0e8f7a6b5c4/<cid>\n",
        ),
        ("a UID that goes on", "0::/kubepods/pod<uid>0/<cid>\n"),
        (
            "a name that ends in a carriage return",
            "0::/kubepods/pod<uid>\r\n",
        ),
        (
            "capitals",
            "0::/kubepods/pod6D2B1A0C-5C3E-4F7A-9B1D-0E8F7A6B5C4D/<cid>\n",
        ),
    ];

    #[test]
    fn paths_of_pods() {
        for (what, text) in PODS {
            assert_eq!(of(text).as_deref(), Some(UID), "{what}");
        }
    }

    #[test]
    fn paths_of_others() {
        for (what, text) in NONE {
            assert_eq!(of(text), None, "{what}");
        }
    }

    #[test]
    fn a_static_pod_has_a_hash() {
        let hash = "3f1c9d7b2a5e4c6f8091a2b3c4d5e6f7";
        for text in [
            format!("0::/kubepods/burstable/pod{hash}/{CONTAINER}\n"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice/crio-{CONTAINER}.scope\n"
            ),
        ] {
            assert_eq!(pod_uid(&text), Some(hash.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_uid_is_written_as_it_was_read() {
        for uid in [UID, OTHER, "00000000-0000-0000-0000-000000000000"] {
            assert_eq!(uid.parse::<PodUid>().unwrap().to_string(), uid);
        }
        for text in [
            "",
            "6d2b1a0c",
            &format!("{UID} "),
            &UID.replacen('-', "x", 1),
        ] {
            assert_eq!(text.parse::<PodUid>(), Err(NoUid), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}") {
            pod_uid(&text);
            let _ = text.parse::<PodUid>();
        }

        #[test]
        fn nor_does_what_looks_like_a_path(parts in prop::collection::vec("(kubepods|-pod|pod|[0-9a-f_-]{30,40}|\\.slice|:|/|ä|\\.\\.)", 0..12)) {
            pod_uid(&format!("0::{}", parts.concat()));
        }

        /// Wherever the pod's cgroup lies, whatever is in it.
        #[test]
        fn a_pod_is_found(number: u128, before in "(/[a-z.]{1,12}){0,4}", after in "(/[a-z0-9.:-]{1,20}){0,3}") {
            let uid = PodUid(number);
            for name in [format!("pod{uid}"), format!("a-b-pod{}.slice", uid.to_string().replace('-', "_"))] {
                let text = format!("7:cpu,cpuacct:{before}/{name}{after}\n");
                prop_assert_eq!(pod_uid(&text), Some(uid), "{}", text);
            }
        }
    }
}
