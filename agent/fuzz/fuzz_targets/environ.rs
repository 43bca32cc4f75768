//! Any octets as a process's environment: what is watched has names that Kubernetes allows, and what else stands there, or stands
//! there twice, changes nothing.
#![no_main]

use pendguard_fuzz::identity::{Class, classify};
use pendguard_fuzz::is_one_line;

/// As `NUMAFLOW_POD` and the others may be: what a label of a metric, a line of a log and a row of a table can carry.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !name.is_empty() && name.len() <= 253 && name.chars().all(allowed)
}

libfuzzer_sys::fuzz_target!(|block: &[u8]| {
    let class = classify(block);
    let mut longer = b"PATH=/bin\0NUMAFLOW_=\0NUMAFLOW_REPLICAS=7\0=\0\0".to_vec();
    longer.extend(block);
    longer.extend(b"\0XNUMAFLOW_REPLICA=3\0");
    longer.extend(block);
    assert_eq!(classify(&longer), class);
    match class {
        Class::Source(source) => {
            let identity = source.identity;
            let names = [&identity.namespace, &identity.workload, &identity.pod];
            assert!(names.into_iter().all(|name| is_name(name)), "{identity:?}");
            assert!(identity.vertex.is_empty() || is_name(&identity.vertex));
            assert!(
                source.warnings.iter().all(|it| is_one_line(it)),
                "{:?}",
                source.warnings
            );
        }
        Class::Unidentified(why) => assert!(is_one_line(&why.to_string())),
        Class::NotNumaflow | Class::NotClient | Class::NotSource(_) => {}
    }
});
