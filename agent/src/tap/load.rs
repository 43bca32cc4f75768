//! The object of the programs: loads them one at a time, and attaches them.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use agent_common::abi::turns::{RECEIVES, SENDS, THREADS};
use aya::maps::{Map, MapData, MapError, ProgramArray};
use aya::programs::links::FdLink;
use aya::programs::{Program, ProgramError, ProgramInfo, SkSkb};
use aya::{Btf, Ebpf, EbpfLoader};

use super::account::{self, Account};
use super::hooks::{Hook, Kind, Walk};
use super::{TapError, tracefs, turns};
use crate::memory;
use crate::model::ProgramStatus;

/// The object that `cargo xtask build` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pendguard.bpf.o"));

/// The programs, as they were built in.
pub fn bytes() -> &'static [u8] {
    OBJECT
}

/// An error and what caused it, in one line; of a verifier's log only the end.
pub fn chain(error: &dyn std::error::Error) -> String {
    one_line(&crate::errors::chain(error))
}

fn one_line(text: &str) -> String {
    // aya announces the log also where there is none: the kernel refused before it verified anything.
    let text = text.trim_end();
    let text = text.strip_suffix(". Verifier output:").unwrap_or(text);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let text = lines.join(" / ");
    match text.char_indices().nth_back(1500) {
        Some((cut, _)) => format!("… {}", &text[cut..]),
        None => text,
    }
}

/// A map that is missing, or of another kind.
pub fn map_error(name: &'static str, error: &MapError) -> TapError {
    TapError::Map {
        name,
        reason: chain(error),
    }
}

/// A map whose descriptor can't be used.
pub fn io_error(name: &'static str, error: &std::io::Error) -> TapError {
    TapError::Map {
        name,
        reason: error.to_string(),
    }
}

/// A program as the tap keeps it.
pub struct Attached {
    /// What is told of it.
    pub status: ProgramStatus,
    /// It, in the kernel; where there are turns, all that take them.
    pub instances: Vec<Loaded>,
}

/// One of the programs that take turns.
pub struct Loaded {
    /// What it is pinned as.
    pub name: String,
    /// It, for the kernel's account.
    pub program: Option<OwnedFd>,
    /// What keeps it attached, unless that is pinned.
    pub link: Option<FdLink>,
}

impl Attached {
    /// A program of which nothing is known yet.
    pub fn new(hook: &Hook, kind: Kind) -> Self {
        Self {
            status: ProgramStatus {
                name: hook.program,
                hook: hook.place(kind),
                error: None,
                verified_instructions: None,
                missed: None,
                runs: None,
            },
            instances: Vec::new(),
        }
    }

    /// What the kernel accounts of it.
    pub fn account(&self) -> Option<Account> {
        let accounts = self
            .instances
            .iter()
            .map(|one| account::of(one.program.as_ref()?));
        accounts
            .collect::<Option<Vec<_>>>()
            .and_then(|all| account::together(&all))
    }
}

/// The object, its maps made.
pub struct Object {
    ebpf: Ebpf,
    btf: Option<Btf>,
    turns: u32,
}

impl Object {
    /// Makes the maps. No program is loaded yet.
    pub fn load() -> Result<Self, TapError> {
        let turns = turns::here();
        let mut loader = EbpfLoader::new();
        loader.override_global("INSTANCES", &turns, true);
        if turns > 1 {
            loader.map_max_entries("TURNS", THREADS);
            loader.map_max_entries("SCRATCH", turns * 2 * SENDS);
            loader.map_max_entries("RECEIVED", turns * RECEIVES);
        }
        let ebpf = loader
            .load(OBJECT)
            .map_err(|e| TapError::Load(Box::new(e)))?;
        Ok(Self {
            ebpf,
            btf: None,
            turns,
        })
    }

    /// Gives back the memory that loading took.
    pub fn loaded(&mut self) {
        self.btf = None;
        memory::give_back();
        memory::forget(OBJECT);
    }

    /// Another handle of a map. The object keeps its own: an array of programs loses them with its last one.
    pub fn map(&self, name: &'static str) -> Result<Map, TapError> {
        let map = self.ebpf.map(name).ok_or_else(|| TapError::Map {
            name,
            reason: "not in the object".into(),
        })?;
        let fd = data(map)
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| io_error(name, &e))?;
        MapData::from_fd(fd)
            .and_then(Map::from_map_data)
            .map_err(|e| map_error(name, &e))
    }

    /// The same, as what it is.
    pub fn typed<M: TryFrom<Map, Error = MapError>>(
        &self,
        name: &'static str,
    ) -> Result<M, TapError> {
        M::try_from(self.map(name)?).map_err(|e| map_error(name, &e))
    }

    /// A descriptor of each map that the programs use.
    pub fn descriptors(&self) -> Result<Vec<(String, OwnedFd)>, TapError> {
        self.ebpf
            .maps()
            // Constants of the programs: they need no name.
            .filter(|(name, _)| !name.starts_with('.'))
            .map(|(name, map)| {
                let fd = data(map).fd().as_fd().try_clone_to_owned();
                Ok((
                    name.to_owned(),
                    fd.map_err(|e| io_error("descriptors", &e))?,
                ))
            })
            .collect()
    }

    fn program(&mut self, name: &str) -> Result<&mut Program, String> {
        self.ebpf
            .program_mut(name)
            .ok_or_else(|| format!("{name} is not in the object"))
    }

    /// Loads a program, whatever its kind; `function` is what it hangs on, if that is a function of the kernel's.
    pub fn program_loaded(
        &mut self,
        name: &str,
        function: &str,
    ) -> Result<(BorrowedFd<'_>, Option<ProgramInfo>), String> {
        let of_function = matches!(self.program(name)?, Program::FEntry(_) | Program::FExit(_));
        if of_function && self.btf.is_none() {
            self.btf = Some(Btf::from_sys_fs().map_err(|e| chain(&e))?);
        }
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| format!("{name} is not in the object"))?;
        let loaded = match (&mut *program, &self.btf) {
            (Program::TracePoint(program), _) => program.load(),
            (Program::SkSkb(program), _) => program.load(),
            (Program::FEntry(program), Some(btf)) => program.load(function, btf),
            (Program::FExit(program), Some(btf)) => program.load(function, btf),
            _ => return Err(format!("{name} is of a kind that isn't known")),
        };
        loaded.map_err(|e| chain(&e))?;
        let info = program.info().ok();
        let fd = program.fd().map_err(|e| chain(&e))?;
        Ok((fd.as_fd(), info))
    }

    /// Loads a program that others continue in, and puts it in its place.
    pub fn continue_in(&mut self, walk: &Walk, kind: Kind) -> Result<(), TapError> {
        let refused = |reason| TapError::Walk(walk.program, reason);
        for instance in walk.instances(kind) {
            let mut walks: ProgramArray<_> = self.typed(instance.array)?;
            self.program_loaded(&instance.name, &instance.function)
                .map_err(refused)?;
            let fd = self.program(&instance.name).and_then(|program| {
                let fd = program.fd().map_err(|e| chain(&e))?;
                fd.try_clone().map_err(|e| e.to_string())
            });
            walks
                .set(walk.number, &fd.map_err(refused)?, 0)
                .map_err(|e| map_error(instance.array, &e))?;
        }
        Ok(())
    }

    /// A program of sockets, loaded.
    pub fn sk_skb(&mut self, name: &'static str) -> Result<&mut SkSkb, String> {
        self.program_loaded(name, "")?;
        self.program(name)?
            .try_into()
            .map_err(|e: ProgramError| chain(&e))
    }

    /// Loads and attaches one program; an `Err` only where it is required.
    pub fn attach(
        &mut self,
        hook: &Hook,
        kind: Kind,
        tracefs: &Path,
    ) -> Result<Attached, TapError> {
        let mut attached = Attached::new(hook, kind);
        if let Err(reason) = self.try_attach(hook, kind, tracefs, &mut attached) {
            let place = hook.place(kind);
            if hook.required {
                return Err(TapError::Required {
                    program: hook.program,
                    hook: place,
                    reason,
                });
            }
            tracing::warn!(
                program = hook.program,
                hook = %place,
                "not attached: {reason}. Without it {}",
                hook.without
            );
            attached.status.error = Some(format!("{reason}. Without it {}", hook.without));
        }
        Ok(attached)
    }

    fn try_attach(
        &mut self,
        hook: &Hook,
        kind: Kind,
        tracefs: &Path,
        attached: &mut Attached,
    ) -> Result<(), String> {
        let function = hook.on_function(kind);
        if function.is_none() {
            check_format(hook, tracefs)?;
        }
        let function = function.unwrap_or_default();
        for number in turns::in_order(hook.numbers(self.turns), hook.on_function(kind).is_some()) {
            let name = format!("{}{number}", hook.variant(kind));
            let (fd, info) = self.program_loaded(&name, &function)?;
            let program = fd.try_clone_to_owned().ok();
            attached.status.verified_instructions = verified(info);
            let link = Some(self.link(&name, hook)?);
            attached.instances.push(Loaded {
                name: format!("{}{number}", hook.program),
                program,
                link,
            });
        }
        Ok(())
    }

    /// Loads and attaches a program to a function, and takes it away again.
    pub fn attach_for_a_trial(&mut self, hook: &Hook) -> Result<(), String> {
        let name = hook.variant(Kind::Fentry);
        self.program_loaded(&name, &hook.on_function(Kind::Fentry).unwrap_or_default())?;
        self.link(&name, hook).map(drop)
    }

    /// The second half of that, for a program that is loaded.
    pub fn link_for_a_trial(&mut self, hook: &Hook) -> Result<(), String> {
        self.link(&hook.variant(Kind::Fentry), hook).map(drop)
    }

    /// Attaches a program that is loaded.
    fn link(&mut self, name: &str, hook: &Hook) -> Result<FdLink, String> {
        let failed = |e: ProgramError| chain(&e);
        match self.program(name)? {
            Program::TracePoint(program) => {
                let attached = program.attach(hook.category, hook.name);
                let id = attached.map_err(failed_on_tracepoint)?;
                let link = program.take_link(id).map_err(failed)?;
                // 5.15, as the programs: before, a perf event can't be pinned.
                FdLink::try_from(link).map_err(|e| chain(&e))
            }
            Program::FEntry(program) => {
                let id = program.attach().map_err(failed_on_function)?;
                program.take_link(id).map(FdLink::from).map_err(failed)
            }
            Program::FExit(program) => {
                let id = program.attach().map_err(failed_on_function)?;
                program.take_link(id).map(FdLink::from).map_err(failed)
            }
            _ => Err(format!("{name} is of a kind that isn't known")),
        }
    }
}

/// What the kernel answers where its functions can't call programs: its own ENOTSUPP, which C's library has no name for.
const ENOTSUPP: i32 = 524;

/// Why a program can't be attached to a function. The kernel may have taken it all the same: it looks at its functions only now.
fn failed_on_function(error: ProgramError) -> String {
    explained(
        &error,
        ENOTSUPP,
        "this kernel's functions can't call programs (arm64's can from Linux 6.4 on)",
    )
}

/// Why a program can't be attached to a tracepoint.
fn failed_on_tracepoint(error: ProgramError) -> String {
    explained(
        &error,
        libc::EACCES,
        "tracepoints take CAP_PERFMON, and CAP_SYS_ADMIN where kernel.perf_event_paranoid is above 2 (Debian, Ubuntu)",
    )
}

/// An error, and what it means if this is the kernel's code for it.
fn explained(error: &ProgramError, code: i32, meaning: &str) -> String {
    let text = chain(error);
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    let mut codes = causes.filter_map(|e| e.downcast_ref::<std::io::Error>()?.raw_os_error());
    if codes.any(|found| found == code) {
        format!("{text}: {meaning}")
    } else {
        text
    }
}

/// Instructions that the verifier walked, where the kernel tells (5.16).
pub fn verified(program: Option<ProgramInfo>) -> Option<u32> {
    program.and_then(|info| info.verified_instruction_count())
}

fn data(map: &Map) -> &MapData {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::Queue(data)
        | Map::RingBuf(data)
        | Map::SockHash(data)
        | Map::Stack(data) => data,
        _ => unreachable!("the object has no other kind of map"),
    }
}

fn check_format(hook: &Hook, tracefs: &Path) -> Result<(), String> {
    let file: PathBuf = tracefs
        .join("events")
        .join(hook.category)
        .join(hook.name)
        .join("format");
    let format = std::fs::read_to_string(&file).map_err(|e| {
        format!(
            "this kernel has no such tracepoint ({}: {e})",
            file.display()
        )
    })?;
    match hook
        .fields
        .iter()
        .find(|f| !tracefs::has_field(&format, f.name, f.offset, f.size))
    {
        Some(f) => Err(format!(
            "this kernel's record has no field {} of {} bytes at {}",
            f.name, f.size, f.offset
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_s_log_is_one_line_and_no_log_is_not_announced() {
        let refused = "the BPF_PROG_LOAD syscall returned Operation not permitted (os error 1)";
        assert_eq!(one_line(&format!("{refused}. Verifier output: ")), refused);
        assert_eq!(
            one_line(
                "refused. Verifier output: 0: (b7) r0 = 0\n\n  R0 !read_ok\nprocessed 1 insns\n"
            ),
            "refused. Verifier output: 0: (b7) r0 = 0 / R0 !read_ok / processed 1 insns"
        );
        let long = one_line(&format!("begin {}end", "x".repeat(2000)));
        assert!(long.starts_with("… x") && long.ends_with("xend"), "{long}");
        assert_eq!(long.chars().count(), 1503);
    }
}
