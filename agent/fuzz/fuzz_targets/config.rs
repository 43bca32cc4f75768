//! Any text as a configuration file: it is followed as a whole, or every mistake is named by its line, in one line.
#![no_main]

use std::path::Path;

use agent_common::h2::paths::{self, MAX_PATHS};
use pendguard_fuzz::config::{ConfigError, parse};
use pendguard_fuzz::is_one_line;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mistakes = match parse(Path::new("pendguard.toml"), text) {
        Ok(file) => {
            assert!(file.allowed_replicas.is_none_or(|all| all.contains(&0)));
            let methods: Vec<_> = file.methods.into_iter().flatten().collect();
            assert!(methods.len() <= MAX_PATHS);
            for (at, method) in methods.iter().enumerate() {
                assert_eq!(paths::check(&method.value), Ok(()));
                assert!(methods[..at].iter().all(|m| m.value != method.value));
            }
            return;
        }
        Err(ConfigError::Mistakes(mistakes)) => mistakes,
        Err(other) => panic!("{other}"),
    };
    assert!(!mistakes.is_empty());
    let lines = 1 + text.matches('\n').count();
    assert!(mistakes.is_sorted_by_key(|mistake| mistake.place.line));
    for mistake in mistakes {
        assert!((1..=lines).contains(&mistake.place.line), "{mistake}");
        let shown = mistake.to_string();
        assert!(
            shown.starts_with("pendguard.toml:") && is_one_line(&shown),
            "{shown:?}"
        );
    }
});
