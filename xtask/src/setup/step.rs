//! One thing that setup sees to.

use std::fmt::Display;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process;
use crate::progress::Progress;
use crate::workspace::Workspace;

/// One thing that setup sees to.
pub trait Step {
    /// What the step provides, told to the user as it is displayed.
    type Found: Display;

    /// A short name; also that of the log file.
    fn name(&self) -> String;

    /// What is there already, if it is all that is needed.
    fn find(&self) -> Result<Option<Self::Found>>;

    /// What [`Self::perform`] is about to do, in a few words.
    fn plan(&self) -> String;

    /// Does it.
    fn perform(&self, job: &Job<'_>) -> Result<()>;
}

/// A step at work: where its commands' output goes.
pub struct Job<'a> {
    progress: &'a Progress,
    log: PathBuf,
}

impl Job<'_> {
    /// Runs `command` with its output in the step's log and its last line on the terminal.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        process::log(command, &self.log, |line| self.progress.live(line))
    }

    /// Tells the user something that should stay on the screen.
    pub fn say(&self, line: impl Display) {
        self.progress.say(line);
    }

    /// Runs a command that may ask the user something.
    pub fn ask(&self, command: &mut Command) -> Result<()> {
        self.progress.suspend(|| process::show(command))
    }
}

/// Makes sure of `step`: does what it takes, if anything, and says so.
pub fn ensure<S: Step>(
    workspace: &Workspace,
    progress: &mut Progress,
    step: &S,
) -> Result<S::Found> {
    let name = step.name();
    if let Some(found) = step.find().with_context(|| name.clone())? {
        progress.already(&name, &found.to_string());
        return Ok(found);
    }
    progress.begin(&name, &step.plan());
    let logs = workspace.target("setup");
    fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    let log = logs.join(format!("{}.log", name.replace([' ', '/'], "-")));
    // A log tells of the last attempt only.
    fs::write(&log, "").with_context(|| log.display().to_string())?;
    let job = Job { progress, log };
    step.perform(&job)
        .with_context(|| format!("setup step \"{name}\""))?;
    let found = step.find()?.with_context(|| {
        format!(
            "setup step \"{name}\" went through, but what it should have installed is not there (its log: {})",
            job.log.display()
        )
    })?;
    progress.done(&name, &found.to_string());
    Ok(found)
}
