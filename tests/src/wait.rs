//! How long anything may take. Limits are those of an ordinary machine; PENDGUARD_TEST_SLOW multiplies them all, for
//! one that is many times slower (an emulated one, say).

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::time::{Instant, sleep, timeout};

/// The variable: a number of 1 or more.
const SLOW: &str = "PENDGUARD_TEST_SLOW";
/// How often something that can't be waited for is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How long a condition may take to come true.
pub const WAIT_LIMIT: Duration = Duration::from_secs(30);

/// A limit on this machine.
#[must_use]
pub fn scaled(limit: Duration) -> Duration {
    static FACTOR: LazyLock<u32> = LazyLock::new(|| {
        factor(std::env::var(SLOW).ok().as_deref()).unwrap_or_else(|e| panic!("{e:#}"))
    });
    limit.saturating_mul(*FACTOR)
}

/// What the variable says. Anything that isn't a factor is an error: a limit that was meant to be longer would show as
/// a failure of something else.
fn factor(value: Option<&str>) -> Result<u32> {
    match value.map(str::parse) {
        None => Ok(1),
        Some(Ok(factor @ 1..)) => Ok(factor),
        Some(_) => bail!(
            "{SLOW}={:?} is not a number of 1 or more",
            value.unwrap_or_default()
        ),
    }
}

/// Looks again and again until there is something to return.
///
/// # Errors
/// Looking failed, or the limit is over.
pub async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let limit = scaled(limit);
    let deadline = Instant::now() + limit;
    loop {
        // Once more after the deadline: what came true while nobody looked did come true.
        let last = Instant::now() >= deadline;
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if last {
            bail!("not within {limit:?}: {what}");
        }
        sleep(LOOK).await;
    }
}

/// Waits for a future.
///
/// # Errors
/// The limit is over.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> Result<T> {
    let limit = scaled(limit);
    timeout(limit, future)
        .await
        .with_context(|| format!("not within {limit:?}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor() {
        assert_eq!(factor(None).unwrap(), 1);
        assert_eq!(factor(Some("12")).unwrap(), 12);
        for bad in ["", "0", "-1", "fast", "1.5"] {
            assert!(factor(Some(bad)).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn something_is_waited_for_until_it_comes_or_the_limit_is_over() {
        let mut looks = 0;
        let found = wait_for("three", WAIT_LIMIT, async || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        })
        .await;
        assert_eq!(found.unwrap(), 3);

        let limit = Duration::from_millis(50);
        let never = wait_for::<()>("nothing", limit, async || Ok(None)).await;
        assert!(never.unwrap_err().to_string().ends_with(": nothing"));
        let never = within("an end", limit, std::future::pending::<()>()).await;
        assert!(never.unwrap_err().to_string().ends_with(": an end"));
    }

    #[tokio::test]
    async fn a_look_that_fails_ends_it() {
        let failed = wait_for::<()>("it", WAIT_LIMIT, async || bail!("gone")).await;
        assert_eq!(failed.unwrap_err().to_string(), "gone");
    }
}
