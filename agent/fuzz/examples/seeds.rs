//! Writes the targets' first inputs to `corpus`: a configuration with every key, environments and cgroups of Numaflow's pods, and what a kernel writes.

use std::fs;
use std::io::Result;
use std::path::Path;

const CONFIG: &str = include_str!("../../testdata/full.toml");

const MONO_VERTEX: &str = "PATH=/bin\0NUMAFLOW_NAMESPACE=payments\0NUMAFLOW_POD=orders-mv-2-abcde\0NUMAFLOW_REPLICA=2\0\
    NUMAFLOW_MONO_VERTEX_NAME=orders\0NUMAFLOW_MONO_VERTEX_OBJECT=eyJzcGVjIjp7InNvdXJjZSI6eyJ1ZHNvdXJjZSI6e319fX0=\0";
const PIPELINE: &str = "NUMAFLOW_NAMESPACE=payments\0NUMAFLOW_POD=flow-in-1-abcde\0NUMAFLOW_REPLICA=1\0NUMAFLOW_PIPELINE_NAME=flow\0\
    NUMAFLOW_VERTEX_NAME=in\0NUMAFLOW_VERTEX_OBJECT=eyJzcGVjIjp7InNpbmsiOnt9fX0=\0";

const CGROUPS: [&str; 4] = [
    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6d2b1a0c_5c3e_4f7a_9b1d_0e8f7a6b5c4d.slice/cri-containerd-8e5c.scope\n",
    "12:pids:/kubepods/besteffort/pod6d2b1a0c-5c3e-4f7a-9b1d-0e8f7a6b5c4d/8e5c\n1:name=systemd:/kubepods/besteffort/pod6d2b1a0c-5c3e-4f7a-9b1d-0e8f7a6b5c4d/8e5c\n",
    "0::/system.slice/containerd.service/kubepods-pod6d2b1a0c_5c3e_4f7a_9b1d_0e8f7a6b5c4d.slice:cri-containerd:8e5c\n",
    "0::/../../pod3f1c9d7b2a5e4c6f8091a2b3c4d5e6f7/crio-8e5c\n",
];

const MOUNTS: &str =
    "proc /proc proc rw 0 0\ntracefs /sys/kernel/tracing tracefs rw 0 0\nbpf /a\\040b bpf rw 0 0\n";
const STATUS: &str = "Name:\tpendguard\nCapEff:\t000001ffffffffff\n";
const LOCKS: &str =
    "1: FLOCK  ADVISORY  WRITE 4711 00:1f:1234 0 EOF\n2: POSIX  ADVISORY  READ 1 08:01:5 0 EOF\n";

fn main() -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let seeds: [(&str, &[&str]); 4] = [
        ("cgroup", &CGROUPS),
        ("config", &[CONFIG]),
        ("environ", &[MONO_VERTEX, PIPELINE]),
        (
            "procfs",
            &[
                MOUNTS,
                STATUS,
                LOCKS,
                "pid:[4026531836]",
                "none [integrity] confidentiality\n",
            ],
        ),
    ];
    for (target, inputs) in seeds {
        let directory = corpus.join(target);
        fs::create_dir_all(&directory)?;
        for (number, input) in inputs.iter().enumerate() {
            fs::write(directory.join(format!("seed-{number}")), input)?;
        }
    }
    println!("written to {}", corpus.display());
    Ok(())
}
