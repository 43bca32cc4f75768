//! Which programs this kernel takes: tried, not guessed.

use super::hooks::{
    ANSWER_WALKS, ANSWERS, EDITS, FIRST_FUNCTION, GATE, GATE_WALK, HOLDS, HOOKS, Hook, Kind,
    REWRITES, WALKS,
};
use super::load::{Object, verified};
use crate::host::{Outcome, ProbeResult, ProgramProbe};
use crate::memory;

/// Whether programs can hang on functions here, and why not. Nothing stays attached.
pub fn functions() -> Result<(), String> {
    tried(|object| object.attach_for_a_trial(&FIRST_FUNCTION))
}

/// Whether programs may write to the memory of processes here, and why not.
pub fn writes() -> Result<(), String> {
    tried(|object| object.program_loaded(REWRITES[0].program, "").map(|_| ()))
}

/// Tries something with an object of its own, of which nothing stays.
fn tried(what: impl FnOnce(&mut Object) -> Result<(), String>) -> Result<(), String> {
    let result = Object::load()
        .map_err(|e| e.to_string())
        .and_then(|mut object| what(&mut object));
    memory::give_back();
    memory::forget(super::load::bytes());
    result
}

/// Loads every program for a trial; for `pendguard doctor`. One is attached, to a function, and all of it is gone afterwards.
pub fn all() -> ProbeResult {
    let mut object = match Object::load() {
        Ok(object) => object,
        Err(error) => {
            return ProbeResult {
                outcome: Outcome::NotSupported,
                detail: error.to_string(),
                programs: Vec::new(),
            };
        }
    };
    let mut programs = Vec::new();
    for kind in [Kind::Tracepoint, Kind::Fentry] {
        for walk in WALKS.iter().chain(&ANSWER_WALKS).chain(&REWRITES) {
            for one in walk.instances(kind) {
                let place = one.place.to_owned();
                programs.push(trial(
                    &mut object,
                    walk.program,
                    &one.name,
                    &one.function,
                    place,
                ));
            }
        }
        let hooks = HOOKS.iter().chain(&ANSWERS).chain(&EDITS);
        let hooks =
            hooks.filter(|hook| kind == Kind::Tracepoint || hook.on_function(kind).is_some());
        programs.extend(hooks.map(|hook| trial_of_hook(&mut object, hook, kind)));
    }
    // Functions may be unable to call what the kernel has taken for them: the first is tried.
    let place = FIRST_FUNCTION.place(Kind::Fentry);
    if let Some(first) = programs.iter_mut().find(|one| one.hook == place)
        && first.outcome == Outcome::Supported
        && let Err(reason) = object.link_for_a_trial(&FIRST_FUNCTION)
    {
        first.outcome = Outcome::NotSupported;
        first.detail = reason;
        first.verified_instructions = None;
    }
    programs.extend(
        HOLDS
            .iter()
            .map(|hook| trial_of_hook(&mut object, hook, Kind::Tracepoint)),
    );
    for name in [GATE, GATE_WALK.1] {
        programs.push(trial(
            &mut object,
            name,
            name,
            "",
            "sk_skb/stream_verdict".to_owned(),
        ));
    }
    let loads = |program: &&ProgramProbe| program.outcome == Outcome::Supported;
    // Audit's, with tracepoints.
    let needed = |program: &&ProgramProbe| {
        WALKS
            .iter()
            .any(|walk| walk.program == program.name && program.hook.is_empty())
            || HOOKS
                .iter()
                .any(|hook| hook.required && program.hook == hook.place(Kind::Tracepoint))
    };
    let (outcome, detail) = match programs
        .iter()
        .find(|program| needed(program) && !loads(program))
    {
        Some(program) => (
            Outcome::NotSupported,
            format!("the kernel refuses {}, which is needed", program.name),
        ),
        None => (
            Outcome::Supported,
            format!(
                "the kernel takes {} of {} programs",
                programs.iter().filter(loads).count(),
                programs.len()
            ),
        ),
    };
    ProbeResult {
        outcome,
        detail,
        programs,
    }
}

fn trial_of_hook(object: &mut Object, hook: &Hook, kind: Kind) -> ProgramProbe {
    let function = hook.on_function(kind).unwrap_or_default();
    trial(
        object,
        hook.program,
        &hook.variant(kind),
        &function,
        hook.place(kind),
    )
}

fn trial(
    object: &mut Object,
    name: &'static str,
    variant: &str,
    function: &str,
    hook: String,
) -> ProgramProbe {
    let loaded = object
        .program_loaded(variant, function)
        .map(|(_, info)| verified(info));
    let (outcome, verified_instructions, detail) = match loaded {
        Ok(verified) => (Outcome::Supported, verified, String::new()),
        Err(reason) => (Outcome::NotSupported, None, reason),
    };
    ProgramProbe {
        name,
        hook,
        outcome,
        detail,
        verified_instructions,
    }
}
