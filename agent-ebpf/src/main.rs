//! Pendguard's BPF programs.
//!
//! | module | programs | attach to |
//! |---|---|---|
//! | [`tap`] | `tap_write` `tap_writev` `tap_sendto` `tap_sendmsg`, `tap_follow` `tap_open` | exits of the send system calls |
//! | [`answers`] | `answer_read` `answer_readv` `answer_recvfrom` `answer_recvmsg`, `answer_walk` `answer_join` `answer_ended` | exits of the receive system calls |
//! | [`answers`] | `answer_begun` | nothing: the tap goes on in it |
//! | [`answers`] | `answer_quiet` | nothing: `answer_walk` goes on in it, while `rewrite` enforces |
//! | [`rewrite`] | `edit_write` `edit_writev` `edit_sendto` `edit_sendmsg`, `edit_walk` | their entries |
//! | [`rewrite`] | `mend`, `replay` | nothing: the tap goes on in them |
//! | [`gate`] | `gate`, `gate_walk` | the sources' sockets (sk_skb) |
//! | [`hold`] | `hold_write` `hold_writev` `hold_sendto` `hold_sendmsg` | entries of the send system calls |
//! | [`fds`] | `fd_close` `fd_close_range` `fd_dup2` `fd_dup3`, `fd_connect` | entries of what ends a descriptor, exit of `connect` |
//! | [`procs`] | `proc_newtask` `proc_exec` `proc_exit` | births, programs and deaths of processes |
//!
//! What hangs on a system call is there twice ([`hook`]): for tracepoints, and, with `_fentry` or `_fexit` behind the name, for
//! the function behind the call.
//!
//! Everything that parses is in `agent-common`; here is only where bytes come from and where counts go. Every
//! program asks first whether the process is a target, and leaves at once if it isn't.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod answers;
mod fds;
mod gate;
mod global;
mod hold;
mod hook;
mod maps;
mod object;
mod procs;
mod regs;
mod rewrite;
mod source;
mod tap;
mod targets;
mod turns;
