//! `pendguard detach`.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::time::Duration;

use super::{block_on, complain, print};
use crate::cli::DetachArgs;
use crate::enforce::detach::{self, Detached};
use crate::enforce::pins::PinError;
use crate::run::Shutdown;

/// How long what keeps something pinned is left alone before it is asked again.
const AGAIN: Duration = Duration::from_secs(2);

/// Detaches and says what was done. 0, or 1 if something is left.
pub fn run(arguments: &DetachArgs) -> u8 {
    if !arguments.wait && !arguments.stay {
        return once(arguments);
    }
    match block_on(patiently(arguments)) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) | Err(error) => {
            complain(&error);
            1
        }
    }
}

/// Detaches until nothing is left, and then stays if that is asked for. A signal ends either.
async fn patiently(arguments: &DetachArgs) -> anyhow::Result<u8> {
    let mut told = Shutdown::install().map(|shutdown| Box::pin(shutdown.wait()))?;
    let mut last = String::new();
    loop {
        let (left, text) = match detach::all(&arguments.pin_dir) {
            Ok(done) => (done.iter().any(|one| !one.removed), text(arguments, &done)),
            // It may be about to be stopped.
            Err(error @ PinError::Taken { .. }) => (true, format!("{error}\n")),
            Err(error) => return Err(error.into()),
        };
        if text != last {
            print(&text);
            last = text;
        }
        if !left {
            break;
        }
        tokio::select! {
            () = &mut told => return Ok(1),
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
    if arguments.stay {
        told.await;
    }
    Ok(0)
}

fn once(arguments: &DetachArgs) -> u8 {
    let done = match detach::all(&arguments.pin_dir) {
        Ok(done) => done,
        Err(error) => {
            complain(&error.into());
            return 1;
        }
    };
    print(&if arguments.json {
        serde_json::json!({ "pins": done }).to_string() + "\n"
    } else {
        text(arguments, &done)
    });
    u8::from(done.iter().any(|one| !one.removed))
}

fn text(arguments: &DetachArgs, done: &[Detached]) -> String {
    let mut text = String::new();
    if done.is_empty() {
        let _ = writeln!(text, "nothing is pinned in {}", arguments.pin_dir.display());
    }
    for one in done {
        let directory = one.directory.display();
        let _ = match &one.reason {
            None => writeln!(text, "{directory}: removed"),
            Some(reason) => writeln!(text, "{directory}: not removed: {reason}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_said() {
        let arguments = DetachArgs {
            json: false,
            wait: false,
            stay: false,
            pin_dir: "/p".into(),
        };
        assert_eq!(text(&arguments, &[]), "nothing is pinned in /p\n");
        let one = |reason: Option<&str>| Detached {
            directory: "/p/v2-1".into(),
            removed: reason.is_none(),
            connections: 0,
            reason: reason.map(str::to_owned),
        };
        assert_eq!(text(&arguments, &[one(None)]), "/p/v2-1: removed\n");
        assert_eq!(
            text(&arguments, &[one(Some("busy"))]),
            "/p/v2-1: not removed: busy\n"
        );
    }
}
