//! Discovery and inventory at work: which processes are replicas, and what the tap counts of them.
//!
//! The kernel tells of processes through a ring buffer ([`agent_common::abi::ProcEvent`]); what ran before the agent is
//! found by looking through `/proc`. Counting doesn't wait for either: a process that runs a new program is watched as a
//! candidate from its first instruction, and this module only decides whose its calls were.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use agent_common::abi::answers::{CallEvent, Code};
use agent_common::abi::{
    Control, Failure, ProcEvent, Reason, Slot, Target, Totals, event, verdict,
};
use agent_common::h2::quiet::PENDING;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::MissedTickBehavior;

use crate::calls::Calls;
use crate::discovery::identity::{self, Class};
use crate::discovery::kube::{Kube, Resource};
use crate::discovery::merge::{self, Claim, Merged, Told, Watch};
use crate::discovery::{cgroup, proc};
use crate::enforce::Enforcement;
use crate::engine::{Engine, ModeChanged, ModeRefused};
use crate::inventory::{Answered, Inventory};
use crate::model::{Identity, Mode, Quieted, ReplicaStatus, Snapshot, Verdict};
use crate::policy::{ModeChange, Policy, Ruling, Say, unenforceable};
use crate::quiet::Quiet;
use crate::tap::answers::ByCode;
use crate::tap::events::Events;
use crate::tap::targets::NEW_ONLY;
use crate::tap::{Enforcer, Tap};
use crate::watch::{Call, Event, Hub, Subscription};

/// How often the agent looks whether something is due.
const TICK: Duration = Duration::from_secs(1);
/// How often it looks through `/proc` where the kernel doesn't tell of processes.
const LOOK: Duration = Duration::from_secs(2);
/// How long a slot rests before another process gets it: programs that began before its process was forgotten are long
/// over by then.
const REST: Duration = Duration::from_secs(2);
/// How many times as long as such a look it does other things first: whoever asks for something waits for a look.
const LOOK_SHARE: u32 = 4;
/// Looks through `/proc` until one finds nothing new, at most so many: a replica may fork meanwhile.
const PASSES: usize = 5;
/// Quick looks whether a process whose first thread ended is gone. After them it is looked at with each [`TICK`]: other threads go on, or
/// so many end at once that its turn has not come.
const FAREWELLS: u32 = 20;
/// How long between the quick looks.
const FAREWELL: Duration = Duration::from_millis(50);
/// `BPF_EXIST`: a process that has gone stays gone.
const OLD_ONLY: u64 = 2;
/// How often connections of processes that were never known, and are gone, are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// How often calls are looked for while somebody watches them.
const CALLS: Duration = Duration::from_millis(50);
/// Calls that are handed on at a time: fewer than watchers may lag behind.
const AT_ONCE: usize = 1024;
/// Warnings that are kept.
const WARNINGS: usize = 20;
/// How long the first look waits for the API server. Until then what an agent before this one has pinned goes on, and what begins is a
/// candidate.
const FIRST_LIST: Duration = Duration::from_secs(5);

/// The observing part of the agent.
pub struct Observer {
    state: Mutex<State>,
    hub: Arc<Hub>,
}

struct State {
    tap: Tap,
    enforcement: Enforcement,
    inventory: Inventory,
    policy: Policy,
    methods: Vec<String>,
    resting: VecDeque<(Instant, u32)>,
    /// Processes that were taken over as they were in the kernel, and their generations: events of their births may still be on the way.
    resumed: BTreeSet<(u32, u64)>,
    /// Whose rejected calls are to be answered quietly.
    quiet: Quiet,
    /// How many rejected calls were shown as others than those.
    loud: BTreeMap<Identity, u64>,
    /// Processes whose first thread has ended, and how many quick looks are left.
    ending: BTreeMap<u32, u32>,
    /// Processes that have ended and are to be buried.
    dead: BTreeSet<u32>,
    /// Processes that run one program after another, and whose they were.
    moving: BTreeMap<u32, Identity>,
    warnings: VecDeque<String>,
    /// What the API server knows, where it is asked.
    kube: Option<Arc<Kube>>,
    /// What the node says of processes that may be replicas', where the API server is asked.
    claims: BTreeMap<u32, Claimed>,
    /// Processes that an agent before this one enforced, until the API server has told whose they are.
    enforced_before: BTreeSet<u32>,
    /// Why this node can't enforce what annotations ask for.
    cant_enforce: Option<String>,
    /// Calls of processes that were gone before anybody knew whose they were.
    orphaned: u64,
    /// Processes of replicas that were told of in vain: there was no room for them.
    unwatched: u64,
    events_lost: u64,
    looked: Instant,
    /// How long no other look through /proc may follow.
    look_rest: Duration,
    /// The last one found processes for which there was no room, or the API server has told since whose one is that could not be told.
    crowded: bool,
    swept: Instant,
    ready: bool,
    calls: Calls,
}

/// What the node says of a process, and what came of it.
struct Claimed {
    claim: Claim,
    warnings: Vec<String>,
}

impl Observer {
    /// An observer of what `tap` sees. Where `policy` enforces anything, `enforcement` has been set up. Whose processes are is told by their
    /// environment, and by `kube` where there is one.
    pub fn new(
        tap: Tap,
        methods: Vec<String>,
        policy: Policy,
        enforcement: Enforcement,
        kube: Option<Arc<Kube>>,
    ) -> Arc<Self> {
        let inventory = Inventory::new(methods.len());
        Arc::new(Self {
            state: Mutex::new(State {
                tap,
                enforcement,
                inventory,
                policy,
                methods,
                resting: VecDeque::new(),
                resumed: BTreeSet::new(),
                quiet: Quiet::default(),
                loud: BTreeMap::new(),
                ending: BTreeMap::new(),
                dead: BTreeSet::new(),
                moving: BTreeMap::new(),
                warnings: VecDeque::new(),
                kube,
                claims: BTreeMap::new(),
                enforced_before: BTreeSet::new(),
                cant_enforce: None,
                orphaned: 0,
                unwatched: 0,
                events_lost: 0,
                looked: Instant::now(),
                look_rest: Duration::ZERO,
                crowded: false,
                swept: Instant::now(),
                ready: false,
                calls: Calls::default(),
            }),
            hub: Hub::new(),
        })
    }

    /// What an operator should know from the beginning, if anything.
    pub fn warn(&self, warning: Option<String>) {
        if let Some(warning) = warning {
            self.state().warn(warning);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held would be a bug; going on with what is there is still better for the node.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds what ran before the agent, then follows what the kernel tells. It ends only with an error; dropping it
    /// stops it.
    pub async fn run(self: Arc<Self>) -> std::io::Result<()> {
        let events = self.state().tap.events.take();
        let mut events = events.map(Events::new).transpose()?;
        let kube = self.state().kube.clone();
        if let Some(kube) = &kube {
            // If it takes longer, the agent goes on without.
            let _ = tokio::time::timeout(FIRST_LIST, kube.known()).await;
        }
        {
            let mut state = self.state();
            if state.enforcement.adopted() {
                state.resume();
            }
            state.look();
            state.ready = true;
            tracing::info!(
                processes = state.inventory.processes(),
                "looked through /proc"
            );
        }
        crate::memory::give_back();
        crate::memory::forget_code();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut farewell = tokio::time::interval(FAREWELL);
        farewell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut calls = tokio::time::interval(CALLS);
        calls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Of the agent's own: a line for each call of a replica that may call.
        let logged = tracing::enabled!(tracing::Level::DEBUG);
        loop {
            let watched = logged || self.hub.watchers() > 0;
            let (ending, due) = {
                let mut state = self.state();
                state.watch_calls(watched);
                (
                    state.ending.values().any(|looks| *looks > 0),
                    state.enforcement.due(),
                )
            };
            tokio::select! {
                result = next(&mut events, |event| self.state().event(event)) => {
                    result?;
                    let mut state = self.state();
                    state.bury();
                    state.join();
                }
                () = changed(kube.as_deref()) => self.state().learned(),
                () = until(due) => self.state().join(),
                _ = farewell.tick(), if ending => self.state().farewell(1),
                _ = calls.tick(), if watched => self.hand_on(logged).await,
                () = self.hub.changed() => {}
                _ = tick.tick() => self.state().tick(),
            }
        }
    }
}

impl Observer {
    /// Hands on the calls that the kernel has told of.
    async fn hand_on(&self, logged: bool) {
        loop {
            let (events, more) = self.state().take_calls();
            for event in events {
                if let (true, Event::Call(call)) = (logged, &event) {
                    self.state().log_call(call);
                }
                self.hub.tell(event);
            }
            if !more {
                return;
            }
            // Who watches gets to read them before there are more.
            tokio::task::yield_now().await;
        }
    }
}

/// Until the API server tells something new; for ever, if it isn't asked.
async fn changed(kube: Option<&Kube>) {
    match kube {
        Some(kube) => kube.changed().await,
        None => std::future::pending().await,
    }
}

/// Until then; for ever, if there is no such moment.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// The next events, of a ring buffer that may not be there.
async fn next(events: &mut Option<Events>, event: impl FnMut(ProcEvent)) -> std::io::Result<()> {
    match events {
        Some(events) => events.next(event).await,
        None => std::future::pending().await,
    }
}

/// What a look at a process's environment said.
enum Seen {
    /// It is a replica's, and to be watched.
    Replica(Replica),
    /// It is of no interest.
    Other,
    /// It is gone.
    Gone,
}

/// Whose a process is, and what follows from it.
struct Replica {
    identity: Identity,
    ruling: Ruling,
    say: Say,
    numaflow_version: Option<String>,
}

impl State {
    fn event(&mut self, event: ProcEvent) {
        match event.kind {
            // Its slot would be given back twice.
            event::EXEC | event::FORK if self.resumed.remove(&(event.tgid, event.generation)) => {}
            event::EXEC | event::FORK => {
                // Whoever runs another program isn't the one that was enforced.
                self.enforced_before.remove(&event.tgid);
                self.born(event);
            }
            event::EXIT => {
                if proc::runs(event.tgid) {
                    self.ending.insert(event.tgid, FAREWELLS);
                } else {
                    self.dead.insert(event.tgid);
                }
            }
            // However many begin, the joins come once the events have been taken.
            event::CONNECT => self.enforcement.want(event.tgid),
            _ => {}
        }
    }

    /// Puts the gate before what waits for it.
    fn join(&mut self) {
        self.enforcement.work(&self.tap);
    }

    /// Goes on where another agent stopped: its programs have watched these processes meanwhile.
    fn resume(&mut self) {
        let targets: Vec<(u32, Target)> = self.tap.targets.iter().flatten().collect();
        for (tgid, target) in targets {
            self.resumed.insert((tgid, target.generation));
            if !proc::runs(tgid) {
                self.tap.targets.forget(tgid, target.generation);
                self.rest(target.slot);
                continue;
            }
            if target.verdict == verdict::REJECTED {
                self.enforced_before.insert(tgid);
            }
            self.born(ProcEvent {
                kind: event::EXEC,
                tgid,
                parent: 0,
                slot: target.slot,
                generation: target.generation,
            });
        }
        let connections: Vec<_> = self.tap.connections.keys().flatten().collect();
        for key in connections {
            if self.tap.targets.get(&key.tgid, 0).is_err() {
                let _ = self.tap.connections.remove(&key);
            }
        }
    }

    /// A process runs a new program, or was forked from a watched one; the kernel made it a target.
    fn born(&mut self, event: ProcEvent) {
        let pid = event.tgid;
        // It is another process by now, or another program.
        self.dead.remove(&pid);
        let left = if self.inventory.slot(pid).is_some_and(|s| s != event.slot) {
            self.bank(pid)
        } else {
            None
        };
        let left = left.or_else(|| self.moving.remove(&pid));
        let watched = self.decide(event);
        if watched.is_none()
            && let Some(identity) = &left
            && self.inventory.slot(pid).is_none()
            && self.tap.targets.get(&pid, 0).is_ok()
        {
            // It has run yet another program meanwhile: that one's event decides whether the replica has gone.
            self.moving.insert(pid, identity.clone());
            return;
        }
        // A program that runs another one of the same replica (a shell, say) is no news.
        if watched != left {
            if let Some(identity) = left {
                log("replica gone", &identity, None);
            }
            if let Some(identity) = watched {
                log("replica watched", &identity, Some(pid));
            }
        }
    }

    /// Watches the process that `event` tells of, or doesn't. Returns the replica if this is its first process.
    fn decide(&mut self, event: ProcEvent) -> Option<Identity> {
        let pid = event.tgid;
        let current = match self.tap.targets.get(&pid, 0) {
            Ok(target) if target.generation == event.generation => target,
            // The agent has put back what it read before this program began; the kernel's own entry is lost by that, so it
            // is made anew.
            Ok(older) if older.generation < event.generation => Target {
                generation: event.generation,
                epoch: event.generation,
                slot: event.slot,
                verdict: verdict::CANDIDATE,
            },
            _ => {
                // Another event about the same pid is on its way, and will find its target.
                self.abandon(event);
                return None;
            }
        };
        match self.see(pid) {
            Seen::Replica(replica) => {
                // Where the kernel found none, there may be one by now.
                let slot = match current.slot {
                    0 => self.free_slot(&replica.identity),
                    slot => Some(slot),
                };
                let Some(slot) = slot else {
                    self.tap.targets.forget(pid, event.generation);
                    self.unwatched += 1;
                    return None;
                };
                let target = Target {
                    slot,
                    verdict: replica.ruling.in_kernel(),
                    ..current
                };
                self.watch(pid, replica, target, 0)
            }
            // Also what is about to run another program, and has no environment meanwhile.
            Seen::Other => {
                self.tap.targets.forget(pid, event.generation);
                self.rest(event.slot);
                None
            }
            Seen::Gone => {
                self.tap.targets.forget(pid, event.generation);
                self.abandon(event);
                None
            }
        }
    }

    /// A slot for a process of a replica. Without one it isn't watched: what is counted in slot 0 is nobody's. It is looked for again.
    fn free_slot(&mut self, identity: &Identity) -> Option<u32> {
        let slot = self.tap.free_slots.pop(0).ok();
        if slot.is_none() {
            self.crowded = true;
            self.warn(format!(
                "a process of {} is not watched for now: all counters are taken",
                identity.pod
            ));
        }
        slot
    }

    /// Gives up the slot of a process that can't be asked any more. What a watched parent's child called is its
    /// replica's; otherwise nobody knows whose it was, and it counts as lost.
    fn abandon(&mut self, event: ProcEvent) {
        // What it called is in nobody's slot, with what others called: it is counted as lost already.
        if event.slot == 0 {
            return;
        }
        let slot = self.tap.slots.get(event.slot).unwrap_or(Slot::ZERO);
        let parent = (event.kind == event::FORK)
            .then(|| self.inventory.identity(event.parent).cloned())
            .flatten();
        match parent {
            Some(identity) => {
                let answered = self.answered(event.slot);
                self.inventory.bank_answers(&identity, &answered);
                self.inventory.bank(&identity, &slot);
            }
            None => self.orphaned += calls(&slot),
        }
        self.rest(event.slot);
    }

    fn see(&mut self, pid: u32) -> Seen {
        let environ = match proc::environ(pid) {
            Ok(environ) => environ,
            Err(error) => {
                if is_trouble(&error, pid) {
                    // Without the pid: a pod may have as many such processes as it likes, and other warnings are to stay.
                    self.warn(format!(
                        "a process isn't watched, as its environment can't be read: {error}"
                    ));
                    tracing::debug!(pid, "its environment can't be read: {error}");
                }
                return Seen::Gone;
            }
        };
        // One that has ended and isn't waited for has none any more.
        if environ.is_empty() && !proc::runs(pid) {
            return Seen::Gone;
        }
        let class = identity::classify(&environ);
        if let Some(kube) = self.kube.clone() {
            return self.see_with(&kube, pid, class);
        }
        match class {
            Class::Source(source) => {
                for warning in source.warnings {
                    self.warn(format!(
                        "process {pid} of {}: {warning}",
                        source.identity.pod
                    ));
                }
                Seen::Replica(Replica {
                    ruling: self.policy.ruling(&source.identity),
                    identity: source.identity,
                    say: Say::default(),
                    numaflow_version: None,
                })
            }
            Class::Unidentified(why) => {
                self.warn(format!(
                    "process {pid} looks like a replica's but can't be told whose: {why}"
                ));
                Seen::Other
            }
            Class::NotNumaflow | Class::NotClient | Class::NotSource(_) => Seen::Other,
        }
    }

    /// The same, where the API server is asked too.
    fn see_with(&mut self, kube: &Kube, pid: u32, class: Class) -> Seen {
        self.claims.remove(&pid);
        if matches!(class, Class::NotNumaflow | Class::NotClient) {
            return Seen::Other;
        }
        let Ok(cgroups) = proc::cgroups(pid) else {
            return Seen::Gone;
        };
        let claim = Claim {
            class,
            pod: cgroup::pod_uid(&cgroups),
            told: None,
        };
        let warnings = Vec::new();
        self.claims.insert(pid, Claimed { claim, warnings });
        match self.merged(kube, pid) {
            Some(watch) => Seen::Replica(self.replica(pid, watch)),
            None => Seen::Other,
        }
    }

    /// How a process is to be watched by what is known now, if it is. What an operator should know of it is kept, and told if it is new.
    fn merged(&mut self, kube: &Kube, pid: u32) -> Option<Watch> {
        let claimed = self.claims.get_mut(&pid)?;
        let Merged { watch, warnings } = merge::merge(pid, &claimed.claim, &kube.knowledge());
        for warning in warnings.iter().filter(|w| !claimed.warnings.contains(w)) {
            tracing::warn!("{}", warning.escape_debug());
        }
        claimed.warnings = warnings;
        if let Some(watch) = watch.as_ref().filter(|watch| watch.told) {
            claimed.claim.told = Some(Told {
                identity: watch.identity.clone(),
                numaflow_version: watch.numaflow_version.clone(),
            });
        }
        watch
    }

    /// What follows from how a process is to be watched.
    fn replica(&mut self, pid: u32, watch: Watch) -> Replica {
        let Watch {
            identity,
            mut say,
            numaflow_version,
            early,
            told: _,
        } = watch;
        // An agent that begins while the API server is away takes nothing back that one before it knew.
        if early && self.enforced_before.contains(&pid) {
            say.held = false;
        }
        Replica {
            ruling: self.ruling(&identity, say),
            identity,
            say,
            numaflow_version,
        }
    }

    /// What the policy says, as far as this node can do it.
    fn ruling(&mut self, identity: &Identity, say: Say) -> Ruling {
        let ruling = self.policy.ruling_of(identity, say);
        if ruling.verdict != Some(Verdict::Rejected) || self.can_enforce() {
            return ruling;
        }
        self.policy.ruling_of(identity, Say { held: true, ..say })
    }

    /// Sets enforcement up where something is to be rejected and it isn't yet: an annotation asks for it when it likes. What fails isn't tried
    /// again before somebody asks for it by `pendguard mode`.
    fn can_enforce(&mut self) -> bool {
        if self.enforcement.active() {
            return true;
        }
        if self.cant_enforce.is_some() {
            return false;
        }
        let change = ModeChange {
            mode: Mode::Enforce,
            answer: None,
            selector: Default::default(),
        };
        let refused = refusal(&change, &self.enforcement.tried(), &self.methods).or_else(|| {
            let result = self.enforcement.enforce(&mut self.tap);
            let refused = |e| ModeRefused::NoEnforcer(crate::errors::chain(&e));
            result.err().map(refused)
        });
        if let Some(refused) = &refused {
            tracing::warn!("an annotation asks for enforcement: {refused}");
        }
        self.cant_enforce = refused.map(|refused| refused.to_string());
        self.cant_enforce.is_none()
    }

    /// The API server has told something: everything is put together anew.
    fn learned(&mut self) {
        let Some(kube) = self.kube.clone() else {
            return;
        };
        let known = {
            let knowledge = kube.knowledge();
            knowledge.is_known(Resource::Pods) && knowledge.is_known(Resource::Namespaces)
        };
        if known {
            self.enforced_before.clear();
        }
        let mut missing = false;
        let pids: Vec<u32> = self.claims.keys().copied().collect();
        for pid in pids {
            let watch = self.merged(&kube, pid);
            match (watch, self.inventory.slot(pid).is_some()) {
                (Some(watch), true) => self.relearn(pid, watch),
                (None, true) => self.unwatch(pid),
                // One that could not be told before.
                (Some(_), false) => missing = true,
                (None, false) => {}
            }
        }
        for failed in self.rule() {
            self.warn(failed);
        }
        self.join();
        if missing {
            self.crowded = true;
        }
    }

    /// A watched process is another replica's than was thought, or something else is said of it.
    fn relearn(&mut self, pid: u32, watch: Watch) {
        let replica = self.replica(pid, watch);
        if self.inventory.identity(pid) != Some(&replica.identity) {
            let before = self.inventory.identity(pid).cloned();
            let (left, arrived) = self
                .inventory
                .rename(pid, &replica.identity, SystemTime::now());
            if let Some(before) = before.filter(|_| left) {
                log("replica was another's", &before, Some(pid));
            }
            if arrived {
                log("replica watched", &replica.identity, Some(pid));
            }
        }
        self.inventory
            .note(pid, replica.say, replica.numaflow_version);
    }

    /// A watched process turns out to be none that is to be watched. It may turn out otherwise.
    fn unwatch(&mut self, pid: u32) {
        let claimed = self.claims.remove(&pid);
        self.dead.insert(pid);
        self.bury();
        if let Some(claimed) = claimed {
            self.claims.insert(pid, claimed);
        }
    }

    /// Makes a process a target. Returns its replica if this is the first process of it.
    fn watch(
        &mut self,
        pid: u32,
        replica: Replica,
        target: Target,
        flags: u64,
    ) -> Option<Identity> {
        let Replica {
            identity,
            ruling,
            say,
            numaflow_version,
        } = replica;
        let slot = target.slot;
        if let Err(error) = self.quiet.ask(&self.tap.answers, slot, ruling) {
            self.warn(format!(
                "a process of {} gets no quiet answers: its counters can't be mapped ({error})",
                identity.pod
            ));
        }
        if let Err(e) = self.tap.targets.insert(pid, target, flags) {
            // It ran another program meanwhile: the kernel made it a candidate, and its event is on the way.
            if flags != NEW_ONLY || self.tap.targets.get(&pid, 0).is_err() {
                self.warn(format!(
                    "a process of {} is not watched: the table of processes refuses it ({e})",
                    identity.pod
                ));
            }
            self.rest(slot);
            return None;
        }
        let now = SystemTime::now();
        let arrived = self.inventory.add(pid, identity.clone(), slot, ruling, now);
        self.inventory.note(pid, say, numaflow_version);
        self.enforcement.rule(pid, target.verdict);
        self.join();
        arrived.then_some(identity)
    }

    /// Forgets the processes that have ended: all at once, since for each look at the connections all of them are gone through.
    fn bury(&mut self) {
        if self.dead.is_empty() {
            return;
        }
        let mut dead = std::mem::take(&mut self.dead);
        // Where the number is another watched process's by now, that one's event is on its way, and does it.
        dead.retain(|pid| {
            let slot = self.tap.targets.get(pid, 0).ok().map(|target| target.slot);
            slot.is_none() || slot == self.inventory.slot(*pid)
        });
        self.forget_connections(&dead);
        let mut lost = self.tap.answers.forget_all(&dead, since_boot());
        for pid in dead {
            self.ended(pid, lost.remove(&pid).unwrap_or_default());
        }
    }

    /// A process has ended, and its connections and their calls under way (`lost`) with it.
    fn ended(&mut self, pid: u32, lost: ByCode) {
        self.claims.remove(&pid);
        self.enforced_before.remove(&pid);
        if let Some(identity) = self.moving.remove(&pid) {
            log("replica gone", &identity, None);
        }
        let Some(slot) = self.inventory.slot(pid) else {
            return;
        };
        // Its number may be another's by now.
        if let Ok(target) = self.tap.targets.get(&pid, 0)
            && target.slot == slot
        {
            self.tap.targets.forget(pid, target.generation);
        }
        if let Some(identity) = self.inventory.identity(pid).cloned() {
            self.bank_lost(&identity, lost);
            let elsewhere: Vec<Slot> = self.enforcement.counted(pid).collect();
            for slot in &elsewhere {
                self.inventory.bank(&identity, slot);
            }
        }
        self.enforcement.forget(pid);
        if let Some(identity) = self.bank(pid) {
            log("replica gone", &identity, None);
        }
    }

    /// Banks what a process's slot holds and forgets the process. Returns its replica if that was its last one.
    fn bank(&mut self, pid: u32) -> Option<Identity> {
        let number = self.inventory.slot(pid)?;
        let slot = self.tap.slots.get(number).unwrap_or(Slot::ZERO);
        if let Some(identity) = self.inventory.identity(pid).cloned() {
            if let Ok(target) = self.tap.targets.get(&pid, 0) {
                // It runs another program: its connections are gone, but for those that are new.
                let lost = self.tap.answers.forget(pid, target.epoch, since_boot());
                self.bank_lost(&identity, lost);
            }
            let answered = self.answered(number);
            self.inventory.bank_answers(&identity, &answered);
            let found = self.inventory.found(pid);
            self.calls.left(number, pid, identity, found);
        }
        self.rest(number);
        self.inventory.remove(pid, &slot, SystemTime::now())
    }

    /// What is known of the answers to the calls of a slot's process.
    fn answered(&self, slot: u32) -> Answered {
        Answered {
            durations: self.tap.answers.durations_of(slot),
            pending: self.tap.answers.pending(slot),
            quieted: self.tap.answers.quieted_of(slot),
        }
    }

    /// Calls that were under way when their connection was lost.
    fn bank_lost(&mut self, identity: &Identity, durations: ByCode) {
        let answered = Answered {
            durations,
            ..Answered::default()
        };
        self.inventory.bank_answers(identity, &answered);
    }

    /// Accounts for the calls that were under way on connections that have been closed.
    fn connections_gone(&mut self) {
        for (pid, durations) in self.tap.answers.gone() {
            let departed = || self.calls.departed.values().find(|(p, ..)| *p == pid);
            let identity = self.inventory.identity(pid);
            let identity = identity.or_else(|| departed().map(|(_, identity, _)| identity));
            if let Some(identity) = identity.cloned() {
                self.bank_lost(&identity, durations);
            }
        }
    }

    /// Forgets connections that a process made before it turned out to be of no interest, once it is gone: nobody tells of its end. Nothing is
    /// looked up for it, only keys are read (see `tap::counters`).
    fn sweep(&mut self) {
        self.swept = Instant::now();
        // What was on the way has long been read.
        self.resumed.clear();
        let connections = self.tap.connections.keys().flatten().map(|key| key.tgid);
        let strangers: BTreeSet<u32> = connections
            .chain(self.tap.answers.processes())
            .filter(|pid| self.inventory.slot(*pid).is_none() && !proc::runs(*pid))
            .collect();
        if !strangers.is_empty() {
            self.forget_connections(&strangers);
            self.tap.answers.forget_all(&strangers, since_boot());
        }
        // Of processes that aren't watched nobody tells the end either.
        self.claims
            .retain(|pid, _| self.inventory.slot(*pid).is_some() || proc::runs(*pid));
    }

    /// Processes are gone, and with them their connections.
    fn forget_connections(&mut self, pids: &BTreeSet<u32>) {
        let connections = self.tap.connections.keys().flatten();
        let gone: Vec<_> = connections.filter(|key| pids.contains(&key.tgid)).collect();
        for key in gone {
            let _ = self.tap.connections.remove(&key);
        }
    }

    /// Has the kernel tell of calls, or not.
    fn watch_calls(&mut self, watched: bool) {
        if self.calls.watched == Some(watched) {
            return;
        }
        if let Some(word) = self.tap.control.atomic(0, offset_of!(Control, watched)) {
            word.store(watched.into(), Ordering::Relaxed);
        }
        self.calls.watched = Some(watched);
        self.calls.lost = self.totals().calls_lost;
        if !watched {
            while self.tap.answers.calls(AT_ONCE, |_| ()) == AT_ONCE {}
            self.calls.unknown.clear();
        }
    }

    /// Takes some of the calls that the kernel has told of, and whether there may be more.
    fn take_calls(&mut self) -> (Vec<Event>, bool) {
        let Self {
            tap,
            inventory,
            methods,
            calls,
            ..
        } = self;
        let mut events = Vec::new();
        let waiting = std::mem::take(&mut calls.unknown);
        let mut take = |calls: &mut Calls, since: Instant, event: CallEvent| {
            match calls.of(inventory, methods, &event) {
                Some(call) => events.extend(call.map(|call| Event::Call(Arc::new(call)))),
                // Whose it is isn't known yet.
                None if since.elapsed() < REST => calls.unknown.push_back((since, event)),
                None => events.push(Event::Lost(1)),
            }
        };
        for (since, event) in waiting {
            take(calls, since, event);
        }
        let now = Instant::now();
        let taken = tap.answers.calls(AT_ONCE, |event| take(calls, now, event));
        let lost = tap.totals.get(0).map_or(0, |totals| totals.calls_lost);
        if lost > calls.lost {
            events.push(Event::Lost(lost - calls.lost));
            calls.lost = lost;
        }
        (events, taken == AT_ONCE)
    }

    /// A line for the call of a replica that may call; none for any other.
    fn log_call(&self, call: &Call) {
        if !self.policy.allows(call.identity.replica) {
            return;
        }
        tracing::debug!(
            namespace = call.identity.namespace,
            workload = call.identity.workload,
            vertex = call.identity.vertex,
            pod = call.identity.pod,
            replica = %call.identity.replica,
            method = %call.method,
            verdict = call.verdict.name(),
            code = call.code.map(Code::name),
            pending = call.pending,
            "call"
        );
    }

    fn rest(&mut self, slot: u32) {
        if slot != 0 {
            self.resting.push_back((Instant::now(), slot));
        }
    }

    /// Looks whether processes whose first thread has ended are gone: those that have at least so many quick looks left.
    fn farewell(&mut self, least: u32) {
        let Self { ending, dead, .. } = self;
        ending.retain(|pid, looks| {
            if *looks < least {
                return true;
            }
            *looks = looks.saturating_sub(1);
            let runs = proc::runs(*pid);
            if !runs {
                dead.insert(*pid);
            }
            runs
        });
        self.bury();
    }

    fn tick(&mut self) {
        while let Some((since, slot)) = self.resting.front().copied() {
            if since.elapsed() < REST {
                break;
            }
            self.resting.pop_front();
            self.tap.slots.set(slot, Slot::ZERO);
            self.quiet.forget(slot);
            self.calls.departed.remove(&slot);
            if let Err(e) = self.tap.answers.release(slot) {
                self.warn(format!("histograms can't be used again: {e}"));
            }
            if let Err(e) = self.tap.free_slots.push(slot, 0) {
                let why = crate::errors::chain(&e);
                self.warn(format!("a counter slot can't be used again: {why}"));
            }
        }
        self.farewell(0);
        self.connections_gone();
        if self.swept.elapsed() >= SWEEP {
            self.sweep();
        }
        self.inventory.expire(SystemTime::now());
        self.enforcement.tick(&self.tap);
        let lost = self.totals().events_lost;
        let blind = !(self.tap.attached("proc_exec")
            && self.tap.attached("proc_newtask")
            && self.tap.attached("proc_exit"));
        let rest = self.looked.elapsed();
        let wanted = lost != self.events_lost || (blind || self.crowded) && rest >= LOOK;
        if wanted && rest >= self.look_rest {
            self.events_lost = lost;
            self.crowded = false;
            let begun = Instant::now();
            self.look();
            self.looked = Instant::now();
            self.look_rest = LOOK_SHARE * begun.elapsed();
        }
    }

    /// Looks through `/proc`, until a pass finds nothing new.
    fn look(&mut self) {
        let known: Vec<u32> = self.inventory.pids().collect();
        for pid in known {
            // Where an event was lost, the same pid may run another program, or be another's.
            let class = proc::environ(pid).map(|environ| identity::classify(&environ));
            let same = match (class, self.claims.get(&pid)) {
                (Ok(class), Some(claimed)) => claimed.claim.class == class,
                (Ok(Class::Source(source)), None) => {
                    self.inventory.identity(pid) == Some(&source.identity)
                }
                _ => false,
            };
            if !same || !proc::runs(pid) {
                self.dead.insert(pid);
            }
        }
        self.bury();
        for _ in 0..PASSES {
            match self.pass() {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) => {
                    self.warn(format!("/proc can't be read: {e}"));
                    return;
                }
            }
        }
    }

    /// Watches each replica's process that isn't watched; says how many there were.
    fn pass(&mut self) -> std::io::Result<usize> {
        let mut found = 0;
        for pid in proc::pids()? {
            // A target that the inventory doesn't know has its event on the way.
            if self.inventory.slot(pid).is_some() || self.tap.targets.get(&pid, 0).is_ok() {
                continue;
            }
            let Seen::Replica(replica) = self.see(pid) else {
                continue;
            };
            let Some(slot) = self.free_slot(&replica.identity) else {
                break;
            };
            let now = since_boot();
            let target = Target {
                generation: now,
                epoch: now,
                slot,
                verdict: replica.ruling.in_kernel(),
            };
            if let Some(identity) = self.watch(pid, replica, target, NEW_ONLY) {
                log("replica watched", &identity, Some(pid));
            }
            if self.inventory.slot(pid).is_some() {
                found += 1;
            } else if self.tap.targets.get(&pid, 0).is_err() && proc::runs(pid) {
                // There is no room for it, nor for those behind it: they are looked for again.
                self.crowded = true;
                break;
            }
        }
        Ok(found)
    }

    /// Puts into the kernel what the policy says now. Returns what could not be put there, in sentences.
    fn rule(&mut self) -> Vec<String> {
        let to_be_rejected = |pid: u32| {
            let (identity, say) = (self.inventory.identity(pid)?, self.inventory.say(pid)?);
            self.policy.ruling_of(identity, say).verdict
        };
        let asked = self
            .inventory
            .pids()
            .any(|pid| to_be_rejected(pid) == Some(Verdict::Rejected));
        let able = !asked || self.can_enforce();
        let Self {
            tap,
            inventory,
            policy,
            enforcement,
            quiet,
            ..
        } = self;
        inventory.rule(|identity, say| {
            let held = say.held || !able;
            policy.ruling_of(identity, Say { held, ..say })
        });
        let mut failed = Vec::new();
        for pid in inventory.pids() {
            let Some(ruling) = inventory.ruling(pid) else {
                continue;
            };
            // A target with another slot is another program's: its event is on the way, and the policy is asked then.
            let Ok(target) = tap.targets.get(&pid, 0) else {
                continue;
            };
            let verdict = ruling.in_kernel();
            if Some(target.slot) != inventory.slot(pid) {
                continue;
            }
            // Before its calls are rejected.
            if let Err(error) = quiet.ask(&tap.answers, target.slot, ruling) {
                failed.push(format!(
                    "process {pid} gets no quiet answers: its counters can't be mapped ({error})"
                ));
            }
            if target.verdict == verdict {
                continue;
            }
            enforcement.rule(pid, verdict);
            let result = tap
                .targets
                .insert(pid, Target { verdict, ..target }, OLD_ONLY);
            if let Err(error) = result
                && tap.targets.get(&pid, 0).is_ok()
            {
                failed.push(format!(
                    "process {pid} keeps its mode: the table of processes refuses the new one ({error})"
                ));
            }
        }
        failed
    }

    /// What an operator should know now of the API server and of what it and the node disagree on.
    fn kube_warnings(&self) -> Vec<String> {
        let Some(kube) = &self.kube else {
            return Vec::new();
        };
        let mut warnings = kube.warnings();
        if let Some(why) = &self.cant_enforce {
            warnings.push(format!(
                "an annotation asks for enforcement, and {why}; what is annotated so is audited"
            ));
        }
        // Processes of one pod, and pods of one namespace, may have the same.
        let of_processes = self.claims.values().flat_map(|claimed| &claimed.warnings);
        let mut of_processes: BTreeSet<&String> = of_processes.collect();
        let more = of_processes.len().saturating_sub(WARNINGS);
        warnings.extend(std::iter::from_fn(|| of_processes.pop_first().cloned()).take(WARNINGS));
        if more > 0 {
            warnings.push(format!(
                "and {more} warnings more like these: the log has them"
            ));
        }
        warnings
    }

    /// Says of each replica how many rejected calls were to be answered as ever. Calls and quiet ones are counted by the programs one
    /// after the other, and read so; the difference must not fall for it.
    fn count_loud(&mut self, replicas: &mut [ReplicaStatus]) {
        let Some(method) = self.methods.iter().position(|method| method == PENDING) else {
            return;
        };
        let mut before = std::mem::take(&mut self.loud);
        for status in replicas {
            let rejected = status.calls.get(&(method, Verdict::Rejected));
            let now = rejected.map_or(0, |n| n.saturating_sub(status.quieted.sum()));
            let loud = before.remove(&status.identity).map_or(now, |n| n.max(now));
            status.loud = Some(loud);
            self.loud.insert(status.identity.clone(), loud);
        }
    }

    /// What an operator should know where quiet answers are asked for that there can't be.
    fn quiet_warning(&self) -> Option<String> {
        let asked = self.policy.asks_for_quiet() && self.inventory.rulings().any(Ruling::is_quiet);
        let why = match self.enforcement.kind() {
            _ if !asked => return None,
            Ok(kind) if kind == Enforcer::Gate.name() => "the enforcer gate has none",
            _ if !self.tap.answers.on() => "the agent runs with --no-answers",
            _ => return None,
        };
        Some(format!(
            "quiet answers are asked for, and {why}: calls are rejected with UNIMPLEMENTED"
        ))
    }

    fn warn(&mut self, warning: String) {
        if self.warnings.contains(&warning) {
            return;
        }
        // It may have names in it that a pod has made up: they make no line of their own.
        tracing::warn!("{}", warning.escape_debug());
        if self.warnings.len() == WARNINGS {
            self.warnings.pop_front();
        }
        self.warnings.push_back(warning);
    }

    fn totals(&self) -> Totals {
        self.tap.totals.get(0).unwrap_or(Totals::ZERO)
    }
}

/// Whether an operator should know that the environment of a process can't be read. Of a process that ends it can't, and of others of the
/// node's own it may be refused to everybody.
fn is_trouble(error: &std::io::Error, pid: u32) -> bool {
    if error.kind() != std::io::ErrorKind::PermissionDenied {
        return !proc::is_gone(error);
    }
    let in_pod = proc::cgroups(pid).is_ok_and(|cgroups| cgroup::pod_uid(&cgroups).is_some());
    in_pod && proc::has_memory(pid)
}

/// Tells that a replica came or went.
fn log(what: &'static str, identity: &Identity, pid: Option<u32>) {
    tracing::info!(
        namespace = identity.namespace,
        workload = identity.workload,
        vertex = identity.vertex,
        pod = identity.pod,
        replica = %identity.replica,
        pid,
        "{what}"
    );
}

/// Why this change of mode can't be made, if it can't.
fn refusal(
    change: &ModeChange,
    enforcer: &Result<&'static str, String>,
    methods: &[String],
) -> Option<ModeRefused> {
    if change.mode != Mode::Enforce {
        return None;
    }
    if let Err(reason) = enforcer {
        return Some(ModeRefused::NoEnforcer(reason.clone()));
    }
    let method = methods.get(unenforceable(methods)?)?;
    Some(ModeRefused::Method(method.clone()))
}

/// What an operator should know of a change that was made. `matched` is the number of living replicas that it means.
fn advice(change: &ModeChange, matched: usize, rules: usize) -> Vec<String> {
    let mut advice = Vec::new();
    if matched == 0 {
        advice.push(format!(
            "{} matches no replica on this node now; the mode is set for those to come",
            change.selector
        ));
    }
    if change.selector.is_everything() && rules > 0 {
        advice.push(format!(
            "the {rules} rules of the configuration file have no effect until the agent is restarted: a mode set for every \
             replica wins over them"
        ));
    }
    advice
}

/// Calls that a slot holds.
fn calls(slot: &Slot) -> u64 {
    slot.calls.iter().flatten().sum::<u64>() + slot.unresolved
}

/// Nanoseconds since boot, as `bpf_ktime_get_boot_ns` has them.
pub fn since_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Engine for Observer {
    fn snapshot(&self) -> Snapshot {
        let mut state = self.state();
        let totals = state.totals();
        let programs = state.tap.programs();
        let missed: u64 = programs.iter().filter_map(|p| p.missed).sum();
        let nobodys = state.tap.slots.get(0).as_ref().map_or(0, calls);
        let read = |slot| state.tap.slots.get(slot).unwrap_or(Slot::ZERO);
        let mut replicas = state.inventory.replicas(read);
        for status in &mut replicas {
            for pid in status.pids.clone() {
                for slot in state.enforcement.counted(pid) {
                    state.inventory.include(status, pid, &slot);
                }
            }
        }
        let durations = state.tap.answers.durations();
        // Behind the calls, of which these are some.
        let quieted = state.tap.answers.quieted(state.inventory.last_slot());
        state.inventory.include_answers(&mut replicas, |slot| {
            let quieted = quieted.as_ref().and_then(|all| all.get(slot));
            Some(Answered {
                quieted: quieted.as_ref().map(Quieted::new).unwrap_or_default(),
                durations: durations.get(&slot).cloned().unwrap_or_default(),
                pending: state.tap.answers.pending(slot),
            })
        });
        let of_candidates = state.inventory.missed(read);
        state.count_loud(&mut replicas);
        let failures = Failure::ALL.into_iter().map(|why| {
            let mut n = totals.failures[why as usize];
            if why == Failure::Candidate {
                n += of_candidates;
            }
            (why.name(), n)
        });
        let enforcer = state.enforcement.kind();
        let mut warnings: Vec<String> = state.warnings.iter().cloned().collect();
        warnings.extend(state.enforcement.warnings());
        warnings.extend(state.kube_warnings());
        warnings.extend(state.quiet_warning());
        Snapshot {
            mode: state.policy.node_mode(),
            overrides: state.policy.overrides(),
            methods: state.methods.clone(),
            tap: state.tap.kind.name(),
            enforcer: enforcer.as_ref().ok().copied(),
            enforcer_reason: enforcer.err(),
            programs,
            replicas,
            failures: failures.collect(),
            unparsed: Reason::ALL
                .into_iter()
                .map(|reason| (reason, totals.unparsed[reason as usize]))
                .collect(),
            events_lost: totals.events_lost
                + state.unwatched
                + totals.calls_lost
                + state.orphaned
                + nobodys
                + missed,
            answers: state.tap.answers.on(),
            maps: state.tap.fill_levels(),
            kube: state.kube.as_ref().map_or_else(Vec::new, |k| k.watches()),
            warnings,
        }
    }

    fn ready(&self) -> Result<(), String> {
        if self.state().ready {
            Ok(())
        } else {
            Err("replicas that ran before the agent are still being looked for".into())
        }
    }

    fn set_mode(&self, change: ModeChange) -> Result<ModeChanged, ModeRefused> {
        let mut state = self.state();
        let enforcer = match change.mode {
            Mode::Enforce => state.enforcement.tried(),
            Mode::Off | Mode::Audit => state.enforcement.kind(),
        };
        if let Some(refused) = refusal(&change, &enforcer, &state.methods) {
            return Err(refused);
        }
        let (mode, selector) = (change.mode, change.selector.clone());
        if mode == Mode::Enforce {
            let State {
                tap, enforcement, ..
            } = &mut *state;
            enforcement
                .enforce(tap)
                .map_err(|e| ModeRefused::NoEnforcer(crate::errors::chain(&e)))?;
            state.cant_enforce = None;
        }
        state.policy.change(change.clone())?;
        let failed = state.rule();
        state.join();
        let matched = state.inventory.living().filter(|i| selector.matches(i));
        let mut warnings = advice(&change, matched.count(), state.policy.rules.len());
        warnings.extend(failed);
        tracing::info!(mode = mode.name(), %selector, "mode set at run time");
        Ok(ModeChanged {
            replicas: state.inventory.modes(),
            warnings,
        })
    }

    fn watch(&self) -> Subscription {
        self.hub.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Selector;

    fn change(mode: Mode, namespace: Option<&str>) -> ModeChange {
        ModeChange {
            mode,
            answer: None,
            selector: Selector::new(namespace, None).unwrap(),
        }
    }

    #[test]
    fn enforcement_needs_an_enforcer_and_methods_that_may_be_rejected() {
        let pending = ["/source.v1.Source/PendingFn".to_owned()];
        let read = ["/a.B/C", "/source.v1.Source/ReadFn"].map(str::to_owned);
        let none = Err("lockdown".to_owned());
        for mode in [Mode::Off, Mode::Audit] {
            assert_eq!(refusal(&change(mode, None), &none, &read), None);
        }
        let enforce = change(Mode::Enforce, Some("ns"));
        assert_eq!(refusal(&enforce, &Ok("gate"), &pending), None);
        let refused = refusal(&enforce, &none, &pending).unwrap();
        assert_eq!(refused, ModeRefused::NoEnforcer("lockdown".to_owned()));
        assert!(refused.to_string().ends_with("lockdown"), "{refused}");
        let refused = refusal(&enforce, &Ok("gate"), &read).unwrap();
        assert_eq!(refused, ModeRefused::Method(read[1].clone()));
        assert!(refused.to_string().contains(&read[1]), "{refused}");
    }

    #[test]
    fn a_change_comes_with_advice_where_it_may_surprise() {
        assert!(advice(&change(Mode::Off, Some("a")), 1, 2).is_empty());
        assert!(advice(&change(Mode::Off, None), 3, 0).is_empty());
        let [nobody] = &advice(&change(Mode::Off, Some("a")), 0, 2)[..] else {
            panic!("one")
        };
        assert!(
            nobody.contains("namespace a matches no replica"),
            "{nobody}"
        );
        let [rules] = &advice(&change(Mode::Off, None), 1, 2)[..] else {
            panic!("one")
        };
        assert!(rules.contains("2 rules"), "{rules}");
    }
}
