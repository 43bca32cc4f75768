//! The agent's own modules that read what others write, compiled by themselves: the files are the agent's.

#[path = "../../src/discovery/cgroup.rs"]
pub mod cgroup;
#[path = "../../src/config.rs"]
pub mod config;
#[path = "../../src/durations.rs"]
pub mod durations;
#[path = "../../src/discovery/identity.rs"]
pub mod identity;
#[path = "../../src/model.rs"]
pub mod model;
#[path = "../../src/host/text.rs"]
pub mod text;

/// Whether text does nothing to a terminal but to be shown in one line.
pub fn is_one_line(text: &str) -> bool {
    !text.contains(char::is_control)
}
