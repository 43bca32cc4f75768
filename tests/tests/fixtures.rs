//! The recordings are what they claim to be.

use std::path::{Path, PathBuf};

use pendguard_tests::peers::ClientKind;
use pendguard_tests::protocol::Method;
use pendguard_tests::record::fixture::Fixture;

/// Recordings stay small enough to be read.
const MAX_BYTES: u64 = 60 << 10;
/// The header block of every PendingFn call of Numaflow's Rust data plane: the path is a literal, never indexed.
const NUMAFLOW_PENDING: &str = "8386c104946107b6c2157ee15f71edb08563596a90d54d86afc0bfbe";

fn path(name: &str) -> PathBuf {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/captures");
    captures.join(format!("{name}.json"))
}

fn read(name: &str) -> Fixture {
    let path = path(name);
    let bytes = std::fs::metadata(&path)
        .expect("the fixture is there")
        .len();
    assert!(bytes < MAX_BYTES, "{name}: {bytes} bytes");
    Fixture::read(&path).expect("a fixture")
}

/// Decodes the bytes again.
fn check(name: &str) -> Fixture {
    let fixture = read(name);
    let chunks = fixture.bytes().expect("hex");
    let again = Fixture::of_client(fixture.encoder.clone(), &chunks).expect("HTTP/2");
    assert_eq!(again, fixture, "{name}");
    fixture
}

#[test]
fn each_client_is_recorded_with_its_ground_truth() {
    for kind in ClientKind::ALL {
        let fixture = check(kind.name());
        assert!(fixture.encoder.starts_with(kind.name()), "{kind}");
        for method in Method::ALL {
            assert!(fixture.count(method.path()) >= 6, "{kind}: {method}");
        }
    }
}

#[test]
fn numaflow_itself_is_recorded() {
    let fixture = check("numaflow-1.4.5");
    // What the captures' own description says of them.
    let expected = [
        "IsReady",
        "ReadFn",
        "AckFn",
        "PendingFn",
        "PendingFn",
        "PendingFn",
        "PendingFn",
    ];
    let expected: Vec<(u32, String)> = (1..)
        .step_by(2)
        .zip(expected.map(|method| format!("/source.v1.Source/{method}")))
        .collect();
    assert_eq!(fixture.requests, expected);
}

/// The tonic client stands for Numaflow's data plane in all other tests, so its calls have to be the same bytes.
#[test]
fn the_tonic_client_calls_as_numaflow_does() {
    for name in ["numaflow-1.4.5", ClientKind::Tonic.name()] {
        let fixture = read(name);
        let calls = fixture.chunks.concat().matches(NUMAFLOW_PENDING).count();
        assert_eq!(
            calls as u64,
            fixture.count(Method::PendingFn.path()),
            "{name}"
        );
    }
}
