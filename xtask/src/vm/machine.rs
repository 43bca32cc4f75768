//! A virtual machine, from its start to its end.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use vm_init::{Event, MODULES, PLAN, PORT, Plan};

use super::initramfs::Initramfs;
use super::kernel::Kernel;
use crate::architecture::Architecture;
use crate::process;

/// How long a machine may take to begin with its jobs, and to end after them. It takes 10 s, and on a host with other work for its
/// processors many times that.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// The disk, in the machine.
pub const DISK: &str = "/dev/vda";

/// Memory in MiB, and processors.
const MEMORY: &str = "2048";
const PROCESSORS: &str = "2";

/// How much of the kernel's messages is shown if the machine did not do what it was to.
const CONSOLE_LINES: usize = 40;

/// What comes from the machine.
pub enum Message<'a> {
    /// A line that a job printed.
    Output(&'a str),
    /// Something happened.
    Event(&'a Event),
}

/// A machine that is about to run.
pub struct Machine<'a> {
    pub kernel: &'a Kernel,
    /// The first process.
    pub init: &'a Path,
    pub disk: &'a Path,
    /// Where its own files go: initramfs, console.
    pub directory: PathBuf,
    /// Of the kernel, from its beginning on (`lockdown=`).
    pub lockdown: Option<&'a str>,
    /// Its clock counts the instructions of its one processor.
    pub counts_instructions: bool,
}

/// Ended when it is dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail if it has ended, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// The kernel's messages.
    pub fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs.cpio")
    }

    /// Boots the machine, lets it do what is planned, and hands on what it says. An error unless it has done all of it,
    /// with whatever result.
    pub fn run(&self, plan: &Plan, mut heard: impl FnMut(Message<'_>)) -> Result<()> {
        fs::create_dir_all(&self.directory)
            .with_context(|| self.directory.display().to_string())?;
        self.write_initramfs(plan)?;
        let jobs: Duration = plan
            .jobs
            .iter()
            .map(|job| Duration::from_secs(job.limit))
            .sum();
        let mut deadline = Instant::now() + BOOT_LIMIT;
        let mut command = self.command();
        let mut qemu = Qemu(
            command
                .spawn()
                .with_context(|| format!("cannot start {}", process::describe(&command)))?,
        );
        let output = qemu.0.stdout.take().context("qemu has no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).into_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let mut finished = false;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let line = match lines.recv_timeout(patience) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the machine goes on and on{}", self.last_words());
                }
                // It has ended.
                Err(RecvTimeoutError::Disconnected) => break,
            };
            match Event::of_line(&line) {
                Some(event) => {
                    heard(Message::Event(&event));
                    match event {
                        Event::Failed { message } => bail!("in the machine: {message}"),
                        Event::Finished => finished = true,
                        Event::Booted { .. } => deadline += jobs,
                        Event::Begin { .. } | Event::End { .. } => {}
                    }
                }
                None => heard(Message::Output(line.trim_end_matches(['\r', '\n']))),
            }
        }
        if !finished {
            let status = qemu.0.wait().context("qemu")?;
            bail!(
                "the machine ended before its time ({status}){}",
                self.last_words()
            );
        }
        Ok(())
    }

    /// Removes what nobody looks into after a run without mishap.
    pub fn remove_files(&self) -> Result<()> {
        let path = self.initramfs();
        fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    fn write_initramfs(&self, plan: &Plan) -> Result<()> {
        let mut archive = Initramfs::default();
        archive.directory("dev");
        archive.directory("root");
        let modules = self.kernel.needed_modules()?;
        let directory = MODULES.trim_start_matches('/');
        archive.directory(directory);
        for (name, content) in &modules {
            archive.file(&format!("{directory}/{name}"), content);
        }
        let plan = Plan {
            modules: modules.into_iter().map(|(name, _)| name).collect(),
            root: DISK.to_owned(),
            ..plan.clone()
        };
        archive.file(PLAN.trim_start_matches('/'), &serde_json::to_vec(&plan)?);
        let init = fs::read(self.init).with_context(|| self.init.display().to_string())?;
        archive.file("init", &init);
        let path = self.initramfs();
        fs::write(&path, archive.finish()).with_context(|| path.display().to_string())
    }

    /// The command that boots it.
    pub fn command(&self) -> Command {
        let disk = format!(
            "if=none,id=disk,format=raw,snapshot=on,cache=unsafe,file={}",
            self.disk.display()
        );
        // The kernel ends by a panic, and the machine by what would be a new start, if the first process does.
        let (qemu, kind, console) = match self.kernel.series.architecture {
            Architecture::X86_64 => ("qemu-system-x86_64", &["-cpu", "max"][..], "ttyS0"),
            // Pointers are signed by an algorithm that costs emulation little: the real one takes most of its time.
            Architecture::Aarch64 => (
                "qemu-system-aarch64",
                &["-machine", "virt", "-cpu", "max,pauth-impdef=on"][..],
                "ttyAMA0",
            ),
        };
        // Huge pages only for those who ask. Otherwise the kernel makes them of small ones by itself, whose memory no program can read
        // meanwhile: that takes a moment, but much longer where two processors have one thread, and is tested on purpose.
        let mut parameters =
            format!("console={console} loglevel=7 panic=-1 transparent_hugepage=madvise");
        if let Some(lockdown) = self.lockdown {
            parameters += &format!(" lockdown={lockdown}");
        }
        // Killed by the kernel when this program ends, however it ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", qemu]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none"]);
        // A /dev/kvm need not work: in a virtual machine it may hang a machine before its first message.
        // One thread for both processors. With one each, Linux 6.1 in QEMU 7.2 hung once, where a tracepoint was switched on: both
        // processors stood at the branch that is overwritten for that, with the new instruction in memory.
        command.args(["-accel", "tcg,thread=single"]).args(kind);
        command.args(["-m", MEMORY, "-smp"]);
        if self.counts_instructions {
            // Time in which it is idle is skipped.
            command.args(["1", "-icount", "shift=0,sleep=off"]);
        } else {
            command.arg(PROCESSORS);
        }
        command.arg("-kernel").arg(&self.kernel.image);
        command.arg("-initrd").arg(self.initramfs());
        command.args(["-append", &parameters, "-drive", &disk]);
        command.args(["-device", "virtio-blk-pci,drive=disk"]);
        command.arg("-serial");
        command.arg(format!("file:{}", self.console().display()));
        command.args(["-chardev", "stdio,id=host,signal=off"]);
        command.args(["-device", "virtio-serial-pci", "-device"]);
        command.arg(format!("virtserialport,chardev=host,name={PORT}"));
        // Nothing is sent, but if this ended, qemu would take it that nobody listens either, and the port would block.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// The end of the kernel's messages, for an error.
    fn last_words(&self) -> String {
        let text = fs::read(self.console()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        let tail = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
        format!(
            "; its console ({}) ends:\n    {}",
            self.console().display(),
            tail.join("\n    ")
        )
    }
}
