//! Writes the targets' first inputs to `corpus`: a configuration with every key, environments of Numaflow's pods, and what a kernel writes.

use std::fs;
use std::io::Result;
use std::path::Path;

const CONFIG: &str = include_str!("../../testdata/full.toml");

const MONO_VERTEX: &str = "PATH=/bin\0NUMAFLOW_NAMESPACE=payments\0NUMAFLOW_POD=orders-mv-2-abcde\0NUMAFLOW_REPLICA=2\0\
    NUMAFLOW_MONO_VERTEX_NAME=orders\0NUMAFLOW_MONO_VERTEX_OBJECT=eyJzcGVjIjp7InNvdXJjZSI6eyJ1ZHNvdXJjZSI6e319fX0=\0";
const PIPELINE: &str = "NUMAFLOW_NAMESPACE=payments\0NUMAFLOW_POD=flow-in-1-abcde\0NUMAFLOW_REPLICA=1\0NUMAFLOW_PIPELINE_NAME=flow\0\
    NUMAFLOW_VERTEX_NAME=in\0NUMAFLOW_VERTEX_OBJECT=eyJzcGVjIjp7InNpbmsiOnt9fX0=\0";

const MOUNTS: &str =
    "proc /proc proc rw 0 0\ntracefs /sys/kernel/tracing tracefs rw 0 0\nbpf /a\\040b bpf rw 0 0\n";
const STATUS: &str = "Name:\tpendguard\nCapEff:\t000001ffffffffff\n";
const LOCKS: &str =
    "1: FLOCK  ADVISORY  WRITE 4711 00:1f:1234 0 EOF\n2: POSIX  ADVISORY  READ 1 08:01:5 0 EOF\n";

fn main() -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let seeds: [(&str, &[&str]); 3] = [
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
