//! Runs a job, with its output sent to the host as it comes.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use vm_init::{End, Event, Job};

use crate::port::Port;

/// How often it is looked whether the job has ended, if it prints nothing.
const LOOK: Duration = Duration::from_millis(10);

/// How long a job's processes have to end, once they were killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Runs a job to its end, or to the end of its time. Nothing that it started survives it.
pub fn run(number: usize, job: &Job, port: &mut Port) -> Result<()> {
    port.tell(&Event::Begin { job: number })?;
    let started = Instant::now();
    let end = attempt(job, started, port)?;
    port.tell(&Event::End {
        job: number,
        end,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn attempt(job: &Job, started: Instant, port: &mut Port) -> Result<End> {
    let (output, input) = io::pipe().context("pipe")?;
    let mut command = Command::new(&job.program);
    command
        .args(&job.arguments)
        .env_clear()
        .envs(job.environment.iter().cloned())
        .current_dir(&job.directory)
        .stdin(Stdio::null())
        .stdout(input.try_clone().context("pipe")?)
        .stderr(input)
        .process_group(0);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(End::NotStarted(format!("{}: {error}", job.program))),
    };
    // The job has the pipe's other ends; as long as this process had them too, the pipe would not end.
    drop(command);
    let chunks = pump(output);
    let pid = Pid::from_child(&child);
    let deadline = started + Duration::from_secs(job.limit);
    let mut end = None;
    while end.is_none() {
        forward(&chunks, LOOK, port)?;
        // As the first process, this one is the parent of all orphans too: it waits for whatever ends.
        while let Some((who, status)) = reap() {
            if who == pid {
                end = Some(how(status));
            }
        }
        if end.is_none() && Instant::now() > deadline {
            end = Some(End::TimedOut);
        }
    }
    kill_all();
    // What the job said last.
    while forward(&chunks, LOOK, port)? {}
    Ok(end.unwrap_or(End::TimedOut))
}

/// Reads on a thread of its own, so that waiting for the end of the job and for its output don't exclude each other.
fn pump(mut output: io::PipeReader) -> Receiver<Vec<u8>> {
    let (sender, chunks) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match output.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => {
                    if sender.send(buffer[..n].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    chunks
}

/// Sends what came, waiting for it a while; whether anything did.
fn forward(chunks: &Receiver<Vec<u8>>, patience: Duration, port: &mut Port) -> Result<bool> {
    match chunks.recv_timeout(patience) {
        Ok(chunk) => {
            port.send(&chunk)?;
            Ok(true)
        }
        Err(RecvTimeoutError::Timeout) => Ok(false),
        Err(RecvTimeoutError::Disconnected) => {
            thread::sleep(patience);
            Ok(false)
        }
    }
}

/// A child that has ended.
fn reap() -> Option<(Pid, WaitStatus)> {
    wait(WaitOptions::NOHANG).ok().flatten()
}

fn how(status: WaitStatus) -> End {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => End::Exited(status),
        (None, signal) => End::Killed(signal.unwrap_or_default()),
    }
}

/// Ends every process but this one, and waits until they are gone.
fn kill_all() {
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        let others = processes();
        if others.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in others {
            let _ = kill_process(pid, Signal::KILL);
        }
        while reap().is_some() {}
        thread::sleep(LOOK);
    }
}

/// All processes but this one and the kernel's own.
fn processes() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid > 1)
        // The kernel's threads have no program.
        .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok())
        .filter_map(Pid::from_raw)
        .collect()
}
