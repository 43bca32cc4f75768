//! The model as messages of the API.
#![forbid(unsafe_code)]

use agent_common::abi::Reason;
use agent_common::abi::answers::{BOUNDS, BOUNDS_NS, Code};
use tonic::Status;

use super::pb;
use super::service::About;
use crate::durations::Durations;
use crate::engine::{ModeChanged, ModeRefused};
use crate::export;
use crate::model::{
    Answer, Kind, KubeWatch, MapFill, Mode, ModeOverride, ProgramStatus, Replica, ReplicaStatus,
    Snapshot, Verdict,
};
use crate::policy::{ModeChange, Selector};
use crate::version;
use crate::watch::Call;

pub(super) fn status(
    about: About,
    snapshot: Snapshot,
    ready: Result<(), String>,
) -> pb::GetStatusResponse {
    pb::GetStatusResponse {
        version: version::VERSION.to_owned(),
        revision: version::REVISION.to_owned(),
        pid: about.pid,
        started: Some(about.started.into()),
        mode: mode(snapshot.mode).into(),
        tap: snapshot.tap.to_owned(),
        connections: Some(snapshot.connections().into()),
        unparsed: Reason::ALL
            .into_iter()
            .map(|reason| pb::Unparsed {
                reason: reason.name().to_owned(),
                count: snapshot.unparsed_count(reason),
                help: reason.help().to_owned(),
            })
            .collect(),
        programs: snapshot.programs.into_iter().map(program).collect(),
        methods: snapshot.methods,
        events_lost: snapshot.events_lost,
        warnings: snapshot.warnings,
        not_ready: ready.err().unwrap_or_default(),
        overrides: snapshot.overrides.into_iter().map(override_).collect(),
        enforcer: snapshot.enforcer.unwrap_or(export::NONE).to_owned(),
        enforcer_reason: snapshot.enforcer_reason.unwrap_or_default(),
        enforcement_failures: snapshot
            .failures
            .into_iter()
            .map(|(reason, count)| pb::EnforcementFailure {
                reason: reason.to_owned(),
                count,
            })
            .collect(),
        answers: snapshot.answers,
        maps: snapshot.maps.into_iter().map(map_fill).collect(),
        kube: snapshot.kube.into_iter().map(kube_watch).collect(),
    }
}

fn kube_watch(watch: KubeWatch) -> pb::KubeWatch {
    let errors = watch.errors.into_iter();
    pb::KubeWatch {
        resource: watch.resource.to_owned(),
        synced: watch.synced,
        errors: errors
            .map(|(reason, count)| pb::KubeWatchError {
                reason: reason.to_owned(),
                count,
            })
            .collect(),
    }
}

fn map_fill(map: MapFill) -> pb::MapFill {
    pb::MapFill {
        name: map.name.to_owned(),
        entries: map.entries,
        max_entries: map.max_entries,
    }
}

fn override_(override_: ModeOverride) -> pb::ModeOverride {
    pb::ModeOverride {
        mode: mode(override_.mode).into(),
        answer: override_
            .answer
            .map_or(pb::Answer::Unspecified, answer)
            .into(),
        namespace: override_.namespace,
        pod: override_.pod,
    }
}

/// What a request to set a mode asks for.
pub(super) fn change(request: &pb::SetModeRequest) -> Result<ModeChange, Status> {
    let mode = match request.mode() {
        pb::Mode::Off => Mode::Off,
        pb::Mode::Audit => Mode::Audit,
        pb::Mode::Enforce => Mode::Enforce,
        // A number that this version doesn't know reads as unspecified too.
        pb::Mode::Unspecified => {
            let message = format!("mode {} is none of off, audit and enforce", request.mode);
            return Err(Status::invalid_argument(message));
        }
    };
    let answer = match request.answer() {
        pb::Answer::Unimplemented => Some(Answer::Unimplemented),
        pb::Answer::Quiet => Some(Answer::Quiet),
        pb::Answer::Unspecified if request.answer == 0 => None,
        pb::Answer::Unspecified => {
            let message = format!(
                "answer {} is none of unimplemented and quiet",
                request.answer
            );
            return Err(Status::invalid_argument(message));
        }
    };
    if answer.is_some() && mode != Mode::Enforce {
        let message = format!(
            "an answer is said with mode enforce alone: with mode {} nothing is rejected",
            mode.name()
        );
        return Err(Status::invalid_argument(message));
    }
    let selector = Selector::new(request.namespace.as_deref(), request.pod.as_deref())
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(ModeChange {
        mode,
        answer,
        selector,
    })
}

pub(super) fn changed(changed: ModeChanged) -> pb::SetModeResponse {
    pb::SetModeResponse {
        replicas: [Mode::Off, Mode::Audit, Mode::Enforce]
            .into_iter()
            .map(|m| pb::ModeCount {
                mode: mode(m).into(),
                replicas: changed.replicas.get(&m).copied().unwrap_or_default(),
            })
            .collect(),
        warnings: changed.warnings,
    }
}

pub(super) fn refused(refused: &ModeRefused) -> Status {
    let message = refused.to_string();
    match refused {
        ModeRefused::NoEnforcer(_) | ModeRefused::Method(_) => Status::failed_precondition(message),
        ModeRefused::TooMany(_) => Status::resource_exhausted(message),
    }
}

pub(super) fn replicas(snapshot: Snapshot) -> pb::ListReplicasResponse {
    let Snapshot {
        methods, replicas, ..
    } = snapshot;
    pb::ListReplicasResponse {
        replicas: replicas
            .into_iter()
            .map(|status| replica(&methods, status))
            .collect(),
        bucket_bounds: BOUNDS_NS[..BOUNDS].to_vec(),
    }
}

fn durations(methods: &[String], method: usize, code: Code, of: &Durations) -> pb::Durations {
    pb::Durations {
        method: methods.get(method).cloned().unwrap_or_default(),
        code: code.name().to_owned(),
        buckets: of.buckets(),
        sum_nanoseconds: of.sum(),
    }
}

fn replica(methods: &[String], status: ReplicaStatus) -> pb::Replica {
    let calls = status
        .calls
        .into_iter()
        .filter_map(|((method, verdict), count)| {
            Some(pb::Calls {
                method: methods.get(method).cloned().unwrap_or_default(),
                // There is a field of its own for those of no known method.
                verdict: self::verdict(verdict)?.into(),
                count,
            })
        })
        .collect();
    pb::Replica {
        namespace: status.identity.namespace,
        kind: kind(status.identity.kind).into(),
        workload: status.identity.workload,
        vertex: status.identity.vertex,
        pod: status.identity.pod,
        replica: number(status.identity.replica),
        mode: mode(status.mode).into(),
        pids: status.pids,
        since: Some(status.since.into()),
        gone: status.gone.map(Into::into),
        calls,
        unresolved: status.unresolved,
        connections: Some(pb::Connections {
            synced: status.synced,
            unsynced: status.unsynced,
            latched: status.latched,
            gated: status.gated,
        }),
        durations: status
            .durations
            .iter()
            .map(|(&(method, code), of)| durations(methods, method, code, of))
            .collect(),
        pending: status.pending,
        numaflow_version: status.numaflow_version.unwrap_or_default(),
        mode_from: status.mode_from.to_string(),
        answer: answer(status.answer).into(),
        quieted: status
            .quieted
            .counts()
            .filter(|(_, count)| *count > 0)
            .map(|(manner, count)| pb::Quieted {
                answer: answer(Answer::of(manner)).into(),
                reason: manner.name().to_owned(),
                count,
            })
            .collect(),
    }
}

/// A call as it happened; `None` for one of which it isn't known whether its method is watched.
pub(super) fn call(call: &Call) -> Option<pb::Call> {
    let identity = &call.identity;
    Some(pb::Call {
        sent: Some(call.at.into()),
        namespace: identity.namespace.clone(),
        kind: kind(identity.kind).into(),
        workload: identity.workload.clone(),
        vertex: identity.vertex.clone(),
        pod: identity.pod.clone(),
        replica: number(identity.replica),
        method: (*call.method).to_owned(),
        verdict: verdict(call.verdict)?.into(),
        code: call.code.map(Code::name).unwrap_or_default().to_owned(),
        duration: call.duration.and_then(|took| took.try_into().ok()),
        pending: call.pending,
        pid: call.pid,
        fd: call.fd,
        stream: call.stream,
    })
}

/// The verdict; a call of no known method has none.
fn verdict(verdict: Verdict) -> Option<pb::Verdict> {
    match verdict {
        Verdict::Admitted => Some(pb::Verdict::Admitted),
        Verdict::WouldReject => Some(pb::Verdict::WouldReject),
        Verdict::Rejected => Some(pb::Verdict::Rejected),
        Verdict::Unresolved => None,
    }
}

fn answer(answer: Answer) -> pb::Answer {
    match answer {
        Answer::Unimplemented => pb::Answer::Unimplemented,
        Answer::Quiet => pb::Answer::Quiet,
    }
}

fn kind(kind: Kind) -> pb::Kind {
    match kind {
        Kind::MonoVertex => pb::Kind::MonoVertex,
        Kind::Pipeline => pb::Kind::Pipeline,
    }
}

fn number(replica: Replica) -> Option<u32> {
    match replica {
        Replica::Number(number) => Some(number),
        Replica::Unknown => None,
    }
}

fn program(program: ProgramStatus) -> pb::Program {
    pb::Program {
        name: program.name.to_owned(),
        hook: program.hook,
        error: program.error.unwrap_or_default(),
        verified_instructions: program.verified_instructions,
        missed: program.missed,
        runs: program.runs.map(|(runs, _)| runs),
        run_nanoseconds: program.runs.map(|(_, nanoseconds)| nanoseconds),
    }
}

fn mode(mode: Mode) -> pb::Mode {
    match mode {
        Mode::Off => pb::Mode::Off,
        Mode::Audit => pb::Mode::Audit,
        Mode::Enforce => pb::Mode::Enforce,
    }
}

impl From<export::Connections> for pb::Connections {
    fn from(connections: export::Connections) -> Self {
        Self {
            synced: connections.synced,
            unsynced: connections.unsynced,
            latched: connections.latched,
            gated: connections.gated,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::engine::fake;

    #[test]
    fn a_status_says_everything() {
        let about = About {
            pid: 7,
            started: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
        };
        let mut snapshot = fake::three();
        snapshot.unparsed = vec![(Reason::Tls, 2)];
        snapshot.warnings = vec!["beware".to_owned()];
        snapshot.events_lost = 4;
        snapshot.failures = vec![("candidate", 6)];
        snapshot.replicas[1].latched = 1;
        let some = ModeOverride {
            mode: Mode::Off,
            answer: None,
            namespace: Some("a*".to_owned()),
            pod: None,
        };
        snapshot.overrides = vec![some];
        snapshot.kube = fake::watches();
        let status = status(about, snapshot, Err("not yet".to_owned()));
        assert_eq!(status.version, version::VERSION);
        assert_eq!((status.pid, status.started.unwrap().seconds), (7, 5));
        assert_eq!(
            (status.mode(), &*status.tap),
            (pb::Mode::Audit, "tracepoint")
        );
        assert_eq!(status.methods, [fake::PENDING]);
        assert_eq!(status.connections.unwrap().synced, 3);
        assert_eq!(status.unparsed.len(), Reason::ALL.len());
        let tls = status.unparsed.iter().find(|u| u.reason == "tls").unwrap();
        assert_eq!(tls.count, 2);
        assert_eq!((status.events_lost, &*status.not_ready), (4, "not yet"));
        assert_eq!(status.warnings, ["beware"]);
        assert_eq!(status.connections.unwrap().latched, 1);
        assert_eq!(
            (&*status.enforcer, &*status.enforcer_reason),
            ("none", "not tried")
        );
        let [pods, namespaces] = &status.kube[..] else {
            panic!("two")
        };
        assert_eq!((&*pods.resource, pods.synced), ("pods", true));
        let error = &namespaces.errors[0];
        assert_eq!(
            (namespaces.synced, &*error.reason, error.count),
            (false, "forbidden", 3)
        );
        let failure = &status.enforcement_failures[0];
        assert_eq!((&*failure.reason, failure.count), ("candidate", 6));
        let [set] = &status.overrides[..] else {
            panic!("one")
        };
        assert_eq!(
            (set.mode(), set.namespace(), &set.pod),
            (pb::Mode::Off, "a*", &None)
        );
        let [attached, failed] = &status.programs[..] else {
            panic!("two programs")
        };
        assert_eq!(
            (&*attached.error, attached.run_nanoseconds),
            ("", Some(2_500))
        );
        assert_eq!((&*failed.error, failed.runs), ("no such tracepoint", None));
    }

    #[test]
    fn replicas_say_everything() {
        let mut snapshot = fake::three();
        snapshot.replicas[1].gone = Some(SystemTime::UNIX_EPOCH);
        snapshot.replicas[1].latched = 3;
        snapshot.replicas[1].numaflow_version = Some("v1".to_owned());
        snapshot.replicas[1].calls.insert((0, Verdict::Rejected), 5);
        let replicas = replicas(snapshot).replicas;
        assert_eq!(replicas[0].replica, Some(0));
        assert_eq!(replicas[2].replica, None);
        assert_eq!(replicas[0].kind(), pb::Kind::MonoVertex);
        assert!(replicas[0].gone.is_none() && replicas[1].gone.is_some());
        let calls = &replicas[1].calls[0];
        assert_eq!(
            (&*calls.method, calls.verdict(), calls.count),
            (fake::PENDING, pb::Verdict::WouldReject, 8)
        );
        let rejected = &replicas[1].calls[1];
        assert_eq!(
            (rejected.verdict(), rejected.count),
            (pb::Verdict::Rejected, 5)
        );
        assert_eq!(replicas[1].connections.unwrap().latched, 3);
        let versions = replicas.iter().map(|r| &*r.numaflow_version);
        assert_eq!(versions.collect::<Vec<_>>(), ["", "v1", ""]);
    }
}
