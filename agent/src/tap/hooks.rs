//! Which program goes where, and what is lost without it.

use agent_common::abi::{gates, walks};

/// A field of a tracepoint's record that a program reads.
pub struct Field {
    /// Its name in the `format` file.
    pub name: &'static str,
    /// Its offset, in bytes.
    pub offset: u32,
    /// Its size, in bytes.
    pub size: u32,
}

/// A program and its tracepoint.
pub struct Hook {
    /// The program's name in the object.
    pub program: &'static str,
    /// The tracepoint's category.
    pub category: &'static str,
    /// The tracepoint's name.
    pub name: &'static str,
    /// What the program reads of the record.
    pub fields: &'static [Field],
    /// What is not seen while it is missing.
    pub without: &'static str,
    /// The agent can't do its work without it.
    pub required: bool,
}

/// The programs that the taps continue in, by their place in the array of programs. They are loaded first and attached to
/// nothing.
pub const WALKS: [(u32, &str); walks::COUNT as usize] =
    [(walks::FOLLOW, "tap_follow"), (walks::OPEN, "tap_open")];

/// The gate's program, and the one that it continues in.
pub const GATE: &str = "gate";
/// What [`GATE`] continues in.
pub const GATE_WALK: (u32, &str) = (gates::WALK, "gate_walk");

impl Hook {
    /// The tracepoint as it is mostly written: `category/name`.
    pub fn place(&self) -> String {
        format!("{}/{}", self.category, self.name)
    }
}

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
    }
}

const fn end(program: &'static str, name: &'static str, fields: &'static [Field]) -> Hook {
    Hook {
        program,
        category: "syscalls",
        name,
        fields,
        without: "a descriptor number that is used again may be misread until it fails to parse",
        required: false,
    }
}

const fn argument(name: &'static str, number: u32) -> Field {
    Field {
        name,
        offset: 16 + 8 * number,
        size: 8,
    }
}

/// All hooks, in the order in which they are attached: processes first, so that none is born unseen between the look
/// through /proc and its first send.
pub const HOOKS: [Hook; 11] = [
    Hook {
        program: "proc_exec",
        category: "sched",
        name: "sched_process_exec",
        fields: &[],
        without: "new replicas are found by looking through /proc every 2 s, and calls made before that are missed",
        required: false,
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
    },
    Hook {
        program: "proc_exit",
        category: "sched",
        name: "sched_process_exit",
        fields: &[],
        without: "replicas that ended are noticed by looking through /proc every 2 s",
        required: false,
    },
    end("fd_close", "sys_enter_close", &[argument("fd", 0)]),
    end(
        "fd_close_range",
        "sys_enter_close_range",
        &[argument("fd", 0), argument("max_fd", 1)],
    ),
    end(
        "fd_dup2",
        "sys_enter_dup2",
        &[argument("oldfd", 0), argument("newfd", 1)],
    ),
    end("fd_dup3", "sys_enter_dup3", &[argument("newfd", 1)]),
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
    }
}

/// What holds sends while the gate joins; attached only while it enforces.
pub const HOLDS: [Hook; 4] = [
    hold("hold_write", "sys_enter_write"),
    hold("hold_writev", "sys_enter_writev"),
    hold("hold_sendto", "sys_enter_sendto"),
    hold("hold_sendmsg", "sys_enter_sendmsg"),
];
