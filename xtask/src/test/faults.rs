//! The verb `faults`: every fault that the tests cause, what it is to lead to, and what was seen.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::build;
use crate::process;
use crate::progress::Progress;
use crate::setup::Setup;
use crate::workspace::Workspace;

/// A fault, what is to come of it, and the test that causes it (a file of tests/tests, and a test in it).
struct Fault(&'static str, &'static str, &'static str);

#[rustfmt::skip]
const FAULTS: [Fault; 39] = [
    Fault("more connections than the map CONNECTIONS holds", "traffic untouched; followed connections stay exact; the rest counted as `table_full`", "faults::more_connections_than_the_map_holds"),
    Fault("more answers than the maps ANSWERS and GONE hold", "calls counted, and counted as without a time", "faults::more_connections_than_the_map_holds"),
    Fault("more processes than the maps TARGETS and SLOTS hold, more durations than HISTOGRAMS", "traffic untouched; known replicas stay exact, what is not counted is counted as lost, new replicas are found afterwards", "faults::more_processes_than_the_map_holds"),
    Fault("more rewritten sends under way than EDITS holds", "traffic untouched; the rest admitted and counted as `full` (only where the kernel lets `rewrite`)", "rewrite::what_is_sent_is_rewritten"),
    Fault("more process events than the ring EVENTS holds", "known replicas stay exact, the loss is counted, new replicas are found afterwards", "faults::more_events_than_the_ring_holds"),
    Fault("more calls than the ring CALLS holds, a slow watcher", "told + lost is what was called", "answers::a_slow_watcher_is_told_what_it_missed"),
    Fault("a process dies before the agent looks at it", "its calls count", "processes::the_first_call_of_a_new_replica_counts"),
    Fault("a pid comes back as another replica's process", "the calls of each are its own", "faults::a_pid_comes_back"),
    Fault("a descriptor's number comes back as something else", "nothing of the old connection is applied to it", "sends::descriptors_that_come_back"),
    Fault("a descriptor is passed on in a message, and used beside its original", "each call counts", "hostile::a_descriptor_that_is_passed_on"),
    Fault("fork without a program, exec in the same process", "each program's calls are its own", "processes::families"),
    Fault("other network and process namespaces", "as without", "enforce_faults::other_namespaces"),
    Fault("the wall clock jumps by hours", "nothing changes (only in virtual machines)", "faults::the_clock_jumps"),
    Fault("the agent gets no memory", "enforcement goes on, reads intact, the next agent takes over", "faults::the_agent_is_out_of_memory"),
    Fault("the agent is stopped, replicas come and go", "counted or counted as lost, never both or neither", "processes::an_agent_that_is_stopped_loses_nothing"),
    Fault("the agent is stopped for a minute while it enforces", "nothing is lost, nothing stalls", "enforce::a_stopped_agent"),
    Fault("the agent is killed at each step of a join", "every call answered, every read intact, the next agent joins", "enforce_faults::killed_at_each_step_of_a_join"),
    Fault("the agent is killed under load", "every call answered, every read intact", "enforce_faults::killed_under_load"),
    Fault("the agent is killed, restarted, gone for good", "no gap; the lease ends it", "enforce::it_outlives_its_agent"),
    Fault("two agents start at once", "one runs, and enforces", "enforce_faults::two_agents_at_once"),
    Fault("an agent of another build takes over", "the old programs serve the connections that they have", "enforce::another_build_takes_over"),
    Fault("no bpffs", "refused, with the reason", "enforce::without_bpffs"),
    Fault("a bpffs that can't be written", "refused, with the reason", "enforce_faults::a_bpffs_that_is_read_only"),
    Fault("no room for the API's socket (a bpffs has no size)", "refused, with the reason", "faults::a_full_file_system"),
    Fault("foreign objects in the pin directory", "left alone", "enforce_faults::foreign_pins"),
    Fault("the source restarts", "the new connection is joined, the client reads on", "enforce_faults::the_source_restarts"),
    Fault("the client restarts", "the same", "enforce_faults::the_client_restarts"),
    Fault("client and source are stopped and continued", "nothing is lost", "enforce_faults::stopped_processes"),
    Fault("the socket's buffer is full", "what was sent waits, and all of it arrives", "enforce_faults::a_full_socket"),
    Fault("partial sends, EAGAIN", "only what the kernel took counts", "sends::partial_and_refused_sends"),
    Fault("malformed HTTP/2", "counted by reason, traffic untouched", "sends::malformed_http2"),
    Fault("malformed answers", "calls counted, what was sent arrives, no pending count made up", "hostile::a_source_that_answers_anything"),
    Fault("valid, damaged and random streams through sockets behind the gate", "the source reads what the host's walk makes of them; behind what can't be followed, what was sent", "parser::socket::behind_the_gate_sockets_read_the_same"),
    Fault("another pod's identity claimed, replica 0 of it too", "numbers are false, no verdict on others' calls is", "hostile::a_claimed_identity_is_numbers_alone"),
    Fault("the environment changed after the start", "who it was when its program began", "hostile::an_environment_that_changes"),
    Fault("an environment of 2 GiB", "a bounded part is read, other pods stay exact", "hostile::an_endless_environment"),
    Fault("secrets in a pod's environment, objects and traffic", "neither metrics, API nor log tell them", "hostile::what_a_pod_keeps_to_itself"),
    Fault("sends that no hook sees, connections shared by processes", "not counted; what is seen is", "hostile::what_no_hook_sees"),
    Fault("other protocols, TLS", "nothing is counted for them", "sends::other_protocols"),
];

/// Runs them, prints the table, and writes it to `report`.
pub fn run(workspace: &Workspace, report: Option<&Path>) -> Result<ExitCode> {
    Setup::new(workspace).for_peers()?;
    build::run(workspace, true)?;
    let mut files: Vec<&str> = Vec::new();
    for Fault(_, _, test) in &FAULTS {
        let file = test.split("::").next().unwrap_or_default();
        if !files.contains(&file) {
            files.push(file);
        }
    }
    let mut progress = Progress::start("faults", u64::try_from(files.len())?);
    let log = workspace.target("faults.log");
    fs::write(&log, "").with_context(|| log.display().to_string())?;
    let mut results: HashMap<String, String> = HashMap::new();
    for file in files {
        progress.begin(file, "running");
        let mut command = super::privileged(workspace, "fast");
        command.args(["--test", file, "--", "--test-threads=1"]);
        let result = process::log(&mut command, &log, |line| {
            progress.live(line);
            if let Some((test, result)) = result_of(line) {
                results.insert(format!("{file}::{test}"), result.to_owned());
            }
        });
        progress.done(file, if result.is_ok() { "ok" } else { "FAILED" });
    }
    drop(progress);
    let mut text = String::from(HEADING);
    let mut failed = 0;
    for Fault(fault, expected, test) in &FAULTS {
        let result = results.get(*test).map_or("did not run", String::as_str);
        failed += usize::from(result != "ok");
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {fault} | {expected} | {result} | `{test}` |");
    }
    let _ = writeln!(text, "\n## In figures\n");
    for line in figures(workspace)? {
        let _ = writeln!(text, "* {line}");
    }
    print!("{text}");
    if let Some(path) = report {
        fs::write(path, &text).with_context(|| path.display().to_string())?;
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

const HEADING: &str = "# Faults

Made by `cargo xtask faults --report FILE`: what the tests do to the agent, its maps, the pods and the node, on the running kernel.

| fault | expected | seen | test |
|---|---|---|---|
";

/// What the tests have seen, in their own words.
fn figures(workspace: &Workspace) -> Result<Vec<String>> {
    let directory = workspace.target("faults");
    let mut lines = Vec::new();
    let Ok(entries) = fs::read_dir(&directory) else {
        return Ok(lines);
    };
    for entry in entries {
        let path = entry.context("target/faults")?.path();
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let row: serde_json::Value =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let of = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        lines.push(format!("{}: {}", of("fault"), of("seen")));
    }
    lines.sort();
    Ok(lines)
}

/// The name and the result in `test NAME ... RESULT`.
fn result_of(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.split_once(" ... ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read() {
        assert_eq!(result_of("test a_pid ... ok"), Some(("a_pid", "ok")));
        assert_eq!(result_of("running 2 tests"), None);
    }
}
