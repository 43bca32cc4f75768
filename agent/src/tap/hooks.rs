//! Which program goes where, and what is lost without it.

use agent_common::abi::{gates, turns, walks};

/// What the programs of system calls hang on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Tracepoints of the system calls: anywhere, but every system call of the node takes the slow path meanwhile.
    Tracepoint,
    /// The functions behind these calls (fentry, fexit): only those calls pay.
    Fentry,
}

impl Kind {
    /// As the command line and the metrics write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tracepoint => "tracepoint",
            Self::Fentry => "fentry",
        }
    }
}

/// What the kernel puts before the names of its system calls' functions.
#[cfg(target_arch = "x86_64")]
const FUNCTIONS: &str = "__x64_sys_";
#[cfg(target_arch = "aarch64")]
const FUNCTIONS: &str = "__arm64_sys_";

/// A field of a tracepoint's record that a program reads.
pub struct Field {
    /// Its name in the `format` file.
    pub name: &'static str,
    /// Its offset, in bytes.
    pub offset: u32,
    /// Its size, in bytes.
    pub size: u32,
}

/// A program and its tracepoint; of a system call, the same program is there for the function behind it.
pub struct Hook {
    /// The program's name in the object.
    pub program: &'static str,
    /// The tracepoint's category.
    pub category: &'static str,
    /// The tracepoint's name.
    pub name: &'static str,
    /// What the program reads of the tracepoint's record.
    pub fields: &'static [Field],
    /// What is not seen while it is missing.
    pub without: &'static str,
    /// The agent can't do its work without it.
    pub required: bool,
    /// The object has several of it, which take turns where the kernel preempts them.
    pub turns: bool,
}

/// A program that others continue in: it is attached to nothing.
pub struct Walk {
    /// Its place in the array of programs.
    pub number: u32,
    /// The program's name in the object.
    pub program: &'static str,
    /// It continues programs at the entry of system calls.
    at_entry: bool,
}

const fn walk(number: u32, program: &'static str, at_entry: bool) -> Walk {
    Walk {
        number,
        program,
        at_entry,
    }
}

/// A program that others continue in, for one kind of hook.
pub struct Instance {
    /// Its name in the object.
    pub name: String,
    /// The array of programs that it belongs to.
    pub array: &'static str,
    /// The function whose programs it may continue: of the same type as those of all system calls of its source file.
    pub function: String,
    /// What it continues, in short; nothing for tracepoints.
    pub place: &'static str,
}

impl Walk {
    /// The programs that do it for this kind of hook.
    pub fn instances(&self, kind: Kind) -> Vec<Instance> {
        let one = |suffix: &str, array, call: &str, place| Instance {
            name: format!("{}{suffix}", self.program),
            array,
            function: format!("{FUNCTIONS}{call}"),
            place,
        };
        match (kind, self.at_entry) {
            (Kind::Tracepoint, _) => vec![one("", "WALKS", "", "")],
            (Kind::Fentry, true) => vec![
                one("_fentry", "WALKS_FENTRY", "write", "fentry"),
                one(
                    "_fentry_net",
                    "WALKS_FENTRY_NET",
                    "sendto",
                    "fentry, sockets",
                ),
            ],
            (Kind::Fentry, false) => vec![
                one("_fexit", "WALKS_FEXIT", "write", "fexit"),
                one("_fexit_net", "WALKS_FEXIT_NET", "sendto", "fexit, sockets"),
            ],
        }
    }
}

/// The programs that the taps continue in. They are loaded first.
pub const WALKS: [Walk; 2] = [
    walk(walks::FOLLOW, "tap_follow", false),
    walk(walks::OPEN, "tap_open", false),
];

/// The programs that the tap and [`ANSWERS`] continue in while answers are followed.
pub const ANSWER_WALKS: [Walk; 4] = [
    walk(walks::BEGUN, "answer_begun", false),
    walk(walks::ANSWER, "answer_walk", false),
    walk(walks::JOIN, "answer_join", false),
    walk(walks::ENDED, "answer_ended", false),
];

/// The programs that the tap and [`EDITS`] continue in while `rewrite` enforces. The first is a small one that writes to
/// processes.
pub const REWRITES: [Walk; 3] = [
    walk(walks::MEND, "mend", false),
    walk(walks::REPLAY, "replay", false),
    walk(walks::EDIT, "edit_walk", true),
];

/// The one that [`ANSWER_WALKS`] continue in while `rewrite` enforces.
pub const QUIET: Walk = walk(walks::QUIET, "answer_quiet", false);

/// The gate's program, and the one that it continues in.
pub const GATE: &str = "gate";
/// What [`GATE`] continues in.
pub const GATE_WALK: (u32, &str) = (gates::WALK, "gate_walk");

impl Hook {
    /// The function of the kernel that it hangs on, if it is one.
    pub fn on_function(&self, kind: Kind) -> Option<String> {
        let call = match kind {
            Kind::Fentry if self.category == "syscalls" => self.call(),
            _ => None,
        };
        call.map(|(_, call)| format!("{FUNCTIONS}{call}"))
    }

    /// Whether it is at the exit of its system call, and the call's name.
    fn call(&self) -> Option<(bool, &'static str)> {
        let entry = self
            .name
            .strip_prefix("sys_enter_")
            .map(|call| (false, call));
        entry.or_else(|| self.name.strip_prefix("sys_exit_").map(|call| (true, call)))
    }

    fn suffix(&self) -> &'static str {
        match self.call() {
            Some((true, _)) => "fexit",
            _ => "fentry",
        }
    }

    /// The name of the program for this kind of hook; the first of those that take turns.
    pub fn variant(&self, kind: Kind) -> String {
        match self.on_function(kind) {
            Some(_) => format!("{}_{}", self.program, self.suffix()),
            None => self.program.to_owned(),
        }
    }

    /// What is behind the names of the programs that do the same, where there are `turns`, in the order in which the kernel runs them.
    pub fn numbers(&self, turns: u32) -> &'static [&'static str] {
        let all = if self.turns { turns as usize } else { 1 };
        NUMBERS.get(..all).unwrap_or(&NUMBERS)
    }

    /// Where it hangs, as it is mostly written: `category/name`.
    pub fn place(&self, kind: Kind) -> String {
        match self.on_function(kind) {
            Some(function) => format!("{}/{function}", self.suffix()),
            None => format!("{}/{}", self.category, self.name),
        }
    }
}

/// See [`Hook::numbers`].
const NUMBERS: [&str; turns::PROGRAMS as usize] = ["", "_2", "_3"];

const RET: &[Field] = &[Field {
    name: "ret",
    offset: 16,
    size: 8,
}];

const fn send(program: &'static str, name: &'static str, without: &'static str) -> Hook {
    Hook {
        program,
        category: "syscalls",
        name,
        fields: RET,
        without,
        required: false,
        turns: true,
    }
}

const fn end(program: &'static str, name: &'static str) -> Hook {
    Hook {
        program,
        category: "syscalls",
        name,
        fields: &[],
        without: "a descriptor number that is used again may be misread until it fails to parse",
        required: false,
        turns: true,
    }
}

/// All hooks, in the order in which they are attached: processes first, so that none is born unseen between the look
/// through /proc and its first send.
pub const HOOKS: &[Hook] = &[
    Hook {
        program: "proc_exec",
        category: "sched",
        name: "sched_process_exec",
        fields: &[],
        without: "new replicas are found by looking through /proc every 2 s, and calls made before that are missed",
        required: false,
        turns: false,
    },
    Hook {
        program: "proc_newtask",
        category: "task",
        name: "task_newtask",
        fields: &[
            Field {
                name: "pid",
                offset: 8,
                size: 4,
            },
            Field {
                name: "clone_flags",
                offset: 32,
                size: 8,
            },
        ],
        without: "children that a replica forks without running another program are missed until the next look through /proc",
        required: false,
        turns: false,
    },
    Hook {
        program: "proc_exit",
        category: "sched",
        name: "sched_process_exit",
        fields: &[],
        without: "replicas that ended are noticed by looking through /proc every 2 s",
        required: false,
        turns: false,
    },
    end("fd_close", "sys_enter_close"),
    end("fd_close_range", "sys_enter_close_range"),
    // Later architectures have only its successor.
    #[cfg(target_arch = "x86_64")]
    end("fd_dup2", "sys_enter_dup2"),
    end("fd_dup3", "sys_enter_dup3"),
    send(
        "tap_write",
        "sys_exit_write",
        "calls of clients that send by write (grpc-go) are not seen",
    ),
    Hook {
        required: true,
        ..send(
            "tap_writev",
            "sys_exit_writev",
            "calls of clients that send by writev (Numaflow's Rust data plane, Node) are not seen",
        )
    },
    send(
        "tap_sendto",
        "sys_exit_sendto",
        "calls of clients that send by send or sendto are not seen",
    ),
    send(
        "tap_sendmsg",
        "sys_exit_sendmsg",
        "calls of clients that send by sendmsg (gRPC C-core, Netty) are not seen",
    ),
];

const fn receive(program: &'static str, name: &'static str, without: &'static str) -> Hook {
    Hook {
        program,
        category: "syscalls",
        name,
        fields: RET,
        without,
        required: false,
        turns: true,
    }
}

/// What follows answers; not attached with `--no-answers`.
pub const ANSWERS: [Hook; 4] = [
    receive(
        "answer_read",
        "sys_exit_read",
        "calls of clients that receive by read (grpc-go, Node) are not timed",
    ),
    receive(
        "answer_readv",
        "sys_exit_readv",
        "calls of clients that receive by readv are not timed",
    ),
    receive(
        "answer_recvfrom",
        "sys_exit_recvfrom",
        "calls of clients that receive by recv or recvfrom (Numaflow's Rust data plane) are not timed",
    ),
    receive(
        "answer_recvmsg",
        "sys_exit_recvmsg",
        "calls of clients that receive by recvmsg (gRPC C-core) are not timed",
    ),
];

const fn hold(program: &'static str, name: &'static str) -> Hook {
    Hook {
        program,
        category: "syscalls",
        name,
        fields: &[Field {
            name: "fd",
            offset: 16,
            size: 8,
        }],
        without: "the gate can't join connections safely",
        required: true,
        // A hold that is skipped by one of them is skipped: there is no gate where that may be.
        turns: false,
    }
}

/// What holds sends while the gate joins; attached only while it enforces. Always tracepoints: the kernel may skip a function's program
/// (see `hook` in agent-ebpf), and a send that isn't held could be lost.
pub const HOLDS: [Hook; 4] = [
    hold("hold_write", "sys_enter_write"),
    hold("hold_writev", "sys_enter_writev"),
    hold("hold_sendto", "sys_enter_sendto"),
    hold("hold_sendmsg", "sys_enter_sendmsg"),
];

const fn edit(program: &'static str, name: &'static str) -> Hook {
    Hook {
        program,
        category: "syscalls",
        name,
        // Arguments are read from the registers.
        fields: &[],
        without: "calls that are sent this way are not rejected",
        required: true,
        turns: true,
    }
}

/// What overwrites paths as they are sent; attached only while `rewrite` enforces.
pub const EDITS: [Hook; 5] = [
    Hook {
        fields: RET,
        without: "it is not known which descriptors are sockets",
        ..edit("fd_connect", "sys_exit_connect")
    },
    edit("edit_write", "sys_enter_write"),
    edit("edit_writev", "sys_enter_writev"),
    edit("edit_sendto", "sys_enter_sendto"),
    edit("edit_sendmsg", "sys_enter_sendmsg"),
];

/// A hook to try whether programs may hang on functions.
pub const FIRST_FUNCTION: Hook = end("fd_dup3", "sys_enter_dup3");
