//! Whose rejected calls are to be answered quietly: what the programs were told, by slot.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::policy::Ruling;
use crate::tap::answers::Answering;

/// What the programs were told.
#[derive(Debug, Default)]
pub struct Quiet {
    /// By slot. Of one that isn't here it isn't known: an agent before this one may have said something.
    asked: HashMap<u32, bool>,
}

impl Quiet {
    /// Tells the programs how rejected calls of a slot's process are to end, if they don't know it.
    pub fn ask(&mut self, answers: &Answering, slot: u32, ruling: Ruling) -> std::io::Result<()> {
        let asked = ruling.is_quiet();
        if slot == 0 || self.asked.get(&slot) == Some(&asked) {
            return Ok(());
        }
        answers.ask_quiet(slot, asked)?;
        self.asked.insert(slot, asked);
        Ok(())
    }

    /// A slot has been given back, and what it held is gone.
    pub fn forget(&mut self, slot: u32) {
        self.asked.remove(&slot);
    }
}
