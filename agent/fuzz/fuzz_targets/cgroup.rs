//! Any text as the cgroups of a process: nothing fails, the pod that is found stands there, and what else stands there changes nothing.
#![no_main]

use pendguard_fuzz::cgroup::{PodUid, pod_uid};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let found = pod_uid(text);
    if let Some(pod) = found {
        let plain = pod.to_string().replace('-', "");
        let there = text.replace(['-', '_'], "");
        assert!(there.contains(&format!("pod{plain}")));
        assert_eq!(pod.to_string().parse(), Ok(pod));
    }
    // Hierarchies without a pod say nothing.
    let longer = format!("13:misc:/\n{text}\n0::/system.slice/x.service\n");
    assert_eq!(pod_uid(&longer), found);
    assert!(pod_uid(&format!("0::/user.slice/{}", text.replace('\n', "/"))).is_none());
    let _ = text.parse::<PodUid>();
});
