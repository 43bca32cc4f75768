//! Errors for people.
#![forbid(unsafe_code)]

use std::error::Error;

/// An error and what caused it, on one line. A cause that the text before it quotes already isn't said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("file x: {source}")]
    struct Quoting {
        source: io::Error,
    }

    #[test]
    fn every_cause_once() {
        let source = io::Error::other("disk on fire");
        let error = anyhow::Error::new(Quoting { source }).context("can't start");
        assert_eq!(chain(error.as_ref()), "can't start: file x: disk on fire");
        let plain: Result<(), _> = Err(io::Error::other("why"));
        let error = plain.context("what").unwrap_err();
        assert_eq!(chain(error.as_ref()), "what: why");
    }
}
