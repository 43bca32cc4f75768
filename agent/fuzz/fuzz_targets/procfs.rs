//! Any text as what the kernel writes in `/proc` and `/sys`: nothing fails, and what is found stands there.
#![no_main]

use std::os::unix::ffi::OsStrExt as _;

use pendguard_fuzz::text::{capabilities, holder, lockdown, mount_points, namespace};

/// As the kernel writes a path (`mangle_path`).
fn mangled(path: &[u8]) -> Vec<u8> {
    let mut written = Vec::new();
    for octet in path {
        match octet {
            b' ' | b'\t' | b'\n' | b'\\' => written.extend(format!("\\{octet:03o}").bytes()),
            _ => written.push(*octet),
        }
    }
    written
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    for kind in ["bpf", "tracefs"] {
        let points = mount_points(text, kind);
        assert!(points.len() <= text.lines().count());
    }
    let bits = capabilities(text);
    assert!(bits.is_none() || text.contains("CapEff:"));
    let inode = namespace(text);
    assert!(inode.is_none_or(|inode| text.contains(&inode.to_string())));
    assert!(lockdown(text).is_none_or(|mode| text.contains(mode)));
    assert!(holder(text, 1234).is_none_or(|pid| text.contains(&pid.to_string())));

    // A path that was written is read again, whatever it is. The kernel leaves a carriage return as it is, which ends no line.
    let written = [
        b"none ".to_vec(),
        mangled(text.as_bytes()),
        b" bpf rw 0 0\n".to_vec(),
    ]
    .concat();
    let Ok(written) = String::from_utf8(written) else {
        return;
    };
    let found = mount_points(&written, "bpf");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].as_os_str().as_bytes(), text.as_bytes());
});
