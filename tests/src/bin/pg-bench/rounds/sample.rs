//! One mode in one round: bare, the mode, and bare again, on the same source with the same client.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::accounting::Accounting;
use pendguard_tests::agent::{Agent, PENDING};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::metric::{Measures, Metric, Part};
use super::mode::Mode;
use super::world::{Beside, World};
use crate::cpu::{self, Threads};
use crate::load::Called;
use crate::load::driver::Process;
use crate::proxies::REJECTED;

/// Messages a second where reading is paced.
pub const PACE: u64 = 50_000;

/// What is done, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Calls one after another; none if it is zero.
    pub calls: Duration,
    /// Reading at saturation; none if it is zero.
    pub reading: Duration,
    /// Reading at a pace; none if it is zero.
    pub paced: Duration,
    /// Reading before it is looked at.
    pub warm_up: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    pub round: usize,
    pub mode: Mode,
    pub before: Measures,
    pub with: Measures,
    pub after: Measures,
    /// Resident memory of the proxy's processes, or of the agent, in bytes.
    pub resident: Option<u64>,
    /// Nanoseconds of each of the agent's programs a message read, by the kernel's accounting.
    pub programs: BTreeMap<String, f64>,
}

impl Sample {
    /// A metric as a ratio to bare.
    pub fn ratio(&self, metric: Metric) -> Option<f64> {
        let reference = metric.reference();
        let bare = |measures: &Measures| measures.get(&reference).copied();
        let (before, after) = (bare(&self.before)?, bare(&self.after)?);
        Some(self.with.get(&metric)? / f64::midpoint(before, after))
    }

    /// Takes one.
    pub async fn take(round: usize, mode: Mode, plan: Plan) -> Result<Self> {
        let mut world = World::start(mode).await?;
        // The first seconds of a process are slower.
        world.direct.read(0).await?;
        sleep(2 * plan.warm_up).await;
        world.direct.stop().await?;
        let before = bare(&mut world, plan).await.context("bare, before")?;
        let mut beside = world.enter(mode).await?;
        let with = within(&mut world, &mut beside, mode, plan).await?;
        let (resident, programs) = account(&mut world, &beside, plan).await?;
        world.leave(beside).await?;
        let after = bare(&mut world, plan).await.context("bare, after")?;
        world.end().await?;
        Ok(Self {
            round,
            mode,
            before,
            with,
            after,
            resident,
            programs,
        })
    }
}

/// Whose CPU time is told apart.
struct Payers(Vec<(Part, Vec<u32>)>);

impl Payers {
    fn look(&self) -> Result<Vec<(Part, Threads)>> {
        let own = self.0.iter();
        let mut looked: Vec<_> = own
            .map(|(part, processes)| (*part, Threads::of(processes.iter().copied())))
            .collect();
        looked.push((Part::Kernel, Threads::of_kernel()?));
        Ok(looked)
    }
}

/// How PendingFn ends, and which path is rejected by somebody.
struct Expected {
    admits: bool,
    rejected: Option<&'static str>,
}

async fn bare(world: &mut World, plan: Plan) -> Result<Measures> {
    let payers = Payers(vec![
        (Part::Client, vec![world.direct.pid()]),
        (Part::Source, vec![world.source.pid()]),
    ]);
    let expected = Expected {
        admits: true,
        rejected: Some(REJECTED),
    };
    measure(&mut world.direct, &payers, &expected, plan).await
}

async fn within(
    world: &mut World,
    beside: &mut Beside,
    mode: Mode,
    plan: Plan,
) -> Result<Measures> {
    let source = (Part::Source, vec![world.source.pid()]);
    let mut payers = vec![source];
    let client = match beside {
        Beside::Proxy(_, proxy, client) => {
            payers.push((Part::Proxy, proxy.processes()?));
            client
        }
        Beside::Agent(agent, _) => {
            let pid = agent.pid().context("the agent has ended")?;
            payers.push((Part::Agent, vec![pid]));
            &mut world.direct
        }
        Beside::Nothing | Beside::Empty => &mut world.direct,
    };
    payers.push((Part::Client, vec![client.pid()]));
    let expected = Expected {
        admits: mode.admits(),
        rejected: match mode {
            Mode::Gate | Mode::Rewrite | Mode::Quiet => Some(PENDING),
            _ if mode.rejects() => Some(REJECTED),
            _ => None,
        },
    };
    let measured = measure(client, &Payers(payers), &expected, plan).await;
    match beside {
        Beside::Proxy(kind, proxy, _) => {
            measured.with_context(|| format!("{}: {}", kind.name(), proxy.log()))
        }
        _ => measured.context(mode.name()),
    }
}

fn all(called: &Called, status: &str) -> Result<()> {
    ensure!(called.all(status), "not all {status}: {called:?}");
    Ok(())
}

/// Calls that are rejected: the gate rejects nearly all, for a source may be faster.
fn rejected(called: &Called) -> Result<()> {
    let sum: u64 = called.statuses.values().sum();
    let rejected = called.statuses.get("UNIMPLEMENTED").copied().unwrap_or(0);
    ensure!(rejected * 100 >= sum * 99, "not rejected: {called:?}");
    Ok(())
}

async fn measure(
    client: &mut Process,
    payers: &Payers,
    expected: &Expected,
    plan: Plan,
) -> Result<Measures> {
    let mut measures = Measures::new();
    if !plan.calls.is_zero() {
        if expected.admits {
            let called = client.call(PENDING, plan.calls, 1).await?;
            all(&called, "OK")?;
            measures.insert(Metric::PendingRate, called.rate());
            measures.insert(Metric::PendingP50, called.p50_us);
            measures.insert(Metric::PendingP99, called.p99_us);
            let called = client.call(PENDING, plan.calls / 2, 16).await?;
            all(&called, "OK")?;
            measures.insert(Metric::PendingRateOf16, called.rate());
        }
        if let Some(path) = expected.rejected {
            let called = client.call(path, plan.calls, 1).await?;
            rejected(&called)?;
            measures.insert(Metric::RejectedRate, called.rate());
        }
    }
    if !plan.reading.is_zero() {
        client.read(0).await?;
        sleep(plan.warm_up).await;
        let (rate, cpu) = read(client, payers, plan.reading).await?;
        measures.insert(Metric::ReadRate, rate);
        measures.extend(cpu.map(|(part, ns)| (Metric::ReadCpu(part), ns)));
        if !plan.calls.is_zero() {
            busy(client, expected, plan, &mut measures).await?;
        }
        client.stop().await?;
    }
    if !plan.paced.is_zero() {
        client.read(PACE).await?;
        sleep(plan.warm_up).await;
        let (rate, cpu) = read(client, payers, plan.paced).await?;
        measures.insert(Metric::PacedRate, rate);
        measures.extend(cpu.map(|(part, ns)| (Metric::PacedCpu(part), ns)));
        client.stop().await?;
    }
    Ok(measures)
}

/// Calls beside the reading that is going on at saturation.
async fn busy(
    client: &mut Process,
    expected: &Expected,
    plan: Plan,
    measures: &mut Measures,
) -> Result<()> {
    if expected.admits {
        let before = client.mark().await?;
        let called = client.call(PENDING, plan.calls, 1).await?;
        let after = client.mark().await?;
        all(&called, "OK")?;
        measures.insert(Metric::BusyPendingRate, called.rate());
        measures.insert(Metric::BusyPendingRead, after.rate_since(before));
    }
    if let Some(path) = expected.rejected {
        let before = client.mark().await?;
        let called = client.call(path, plan.calls, 1).await?;
        let after = client.mark().await?;
        rejected(&called)?;
        measures.insert(Metric::BusyRejectedRate, called.rate());
        measures.insert(Metric::BusyRejectedRead, after.rate_since(before));
    }
    Ok(())
}

/// Messages a second, and nanoseconds of CPU time a message.
async fn read(
    client: &mut Process,
    payers: &Payers,
    time: Duration,
) -> Result<(f64, impl Iterator<Item = (Part, f64)> + use<>)> {
    let (threads, before) = (payers.look()?, client.mark().await?);
    sleep(time).await;
    let (after, now) = (client.mark().await?, payers.look()?);
    let messages = after.messages - before.messages;
    ensure!(messages > 0, "nothing was read in {time:?}");
    let mut cpu: Vec<_> = now
        .iter()
        .zip(&threads)
        .map(|((part, now), (_, before))| (*part, now.since(before) as f64 / messages as f64))
        .collect();
    cpu.push((Part::Whole, cpu.iter().map(|(_, ns)| ns).sum()));
    Ok((after.rate_since(before), cpu.into_iter()))
}

/// Memory, and what the kernel accounts of the agent's programs while messages are read at saturation.
async fn account(
    world: &mut World,
    beside: &Beside,
    plan: Plan,
) -> Result<(Option<u64>, BTreeMap<String, f64>)> {
    let mut programs = BTreeMap::new();
    let resident = match beside {
        Beside::Nothing | Beside::Empty => None,
        Beside::Proxy(_, proxy, _) => Some(cpu::resident(&proxy.processes()?)?),
        Beside::Agent(agent, _) => {
            if !plan.reading.is_zero() {
                let client = &mut world.direct;
                client.read(0).await?;
                let _accounting = Accounting::on()?;
                let (before, from) = (run_times(agent).await?, client.mark().await?);
                sleep(plan.reading / 2).await;
                let (to, after) = (client.mark().await?, run_times(agent).await?);
                client.stop().await?;
                let messages = (to.messages - from.messages) as f64;
                for (name, ns) in after {
                    let spent = ns - before.get(&name).copied().unwrap_or(0);
                    if spent > 0 {
                        programs.insert(name, spent as f64 / messages);
                    }
                }
            }
            Some(agent.resident()?)
        }
    };
    Ok((resident, programs))
}

/// Nanoseconds in each program.
pub async fn run_times(agent: &Agent) -> Result<BTreeMap<String, u64>> {
    let status = agent.status().await?;
    let programs = status["programs"].as_array().context("no programs")?;
    let one = |program: &serde_json::Value| {
        let name = program["name"].as_str()?.to_owned();
        Some((name, program["run_nanoseconds"].as_u64()?))
    };
    Ok(programs.iter().filter_map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_to_what_was_before_and_after() {
        let of = |metric, value| Measures::from([(metric, value)]);
        let sample = Sample {
            round: 0,
            mode: Mode::Gate,
            before: of(Metric::PendingRate, 90.0),
            with: of(Metric::RejectedRate, 75.0),
            after: of(Metric::PendingRate, 110.0),
            resident: None,
            programs: BTreeMap::new(),
        };
        assert_eq!(sample.ratio(Metric::RejectedRate), Some(0.75));
        assert_eq!(sample.ratio(Metric::ReadRate), None);
    }
}
