//! What Pendguard's BPF programs and its agent share.
//!
//! * [`h2`]: the HTTP/2 and HPACK tracker. It runs inside the kernel (in every program that looks at gRPC
//!   bytes) and on the host (tests, fuzzing), from the same source.
//! * [`abi`]: the layout of the maps between the programs and the agent.
//!
//! `no_std`, no allocation, no panics: what the BPF verifier would refuse is not written.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod h2;
pub mod vol;
