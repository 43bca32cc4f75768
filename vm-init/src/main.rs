//! The first process of the virtual machines in which `cargo xtask vm` runs the tests.
//!
//! It makes of a bare kernel a node: modules, a root file system, loopback, and what is mounted on any node but
//! tracefs, without which the agent has to do. Then it runs the jobs of its plan, and turns the machine off.

#![forbid(unsafe_code)]

mod jobs;
mod node;
mod port;

use std::fs;

use anyhow::{Context as _, Result};
use rustix::system::{RebootCommand, reboot, uname};
use vm_init::{Event, PLAN, Plan};

use crate::port::Port;

fn main() {
    if !rustix::process::getpid().is_init() {
        eprintln!("pg-init is the first process of a virtual machine: see `cargo xtask vm`");
        std::process::exit(2);
    }
    if let Err(error) = run() {
        // Without the port only the serial line, which is standard error here, hears of it.
        eprintln!("pg-init: {error:#}");
        if let Ok(mut port) = Port::open() {
            let message = format!("{error:#}");
            let _ = port.tell(&Event::Failed { message });
        }
    }
    // Nothing on the disk is kept, so nothing needs to be written to it.
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        eprintln!("pg-init: cannot turn the machine off: {error}");
    }
    // If this process ended, the kernel would panic; qemu is told to end then, so that is the last resort.
}

fn run() -> Result<()> {
    node::mount_early()?;
    let plan = fs::read_to_string(PLAN).context(PLAN)?;
    let plan: Plan = serde_json::from_str(&plan).context(PLAN)?;
    node::load(&plan.modules)?;
    node::enter_root(&plan.root)?;
    node::mount_all()?;
    node::loopback_up().context("loopback")?;
    let mut port = Port::open()?;
    let kernel = uname().release().to_string_lossy().into_owned();
    port.tell(&Event::Booted { kernel })?;
    for (number, job) in plan.jobs.iter().enumerate() {
        jobs::run(number, job, &mut port)?;
    }
    port.tell(&Event::Finished)
}
