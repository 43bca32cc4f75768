//! Work of which several pieces go on at once.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};

use anyhow::Result;

/// Does `work` for each of `items`, for `at_once` of them at a time, and returns what came of each, in the order of `items`.
///
/// Behind an error no further item is begun; those that are under way end first.
pub fn on_each<I: Sync, T: Send>(
    items: &[I],
    at_once: usize,
    work: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let one_after_another = || -> Result<Vec<(usize, T)>> {
        let mut results = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else {
                break;
            };
            let result = work(item).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            results.push((i, result));
        }
        Ok(results)
    };
    let ends: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once.clamp(1, items.len().max(1)))
            .map(|_| scope.spawn(one_after_another))
            .collect();
        workers.into_iter().map(ScopedJoinHandle::join).collect()
    });
    let mut results = Vec::new();
    for end in ends {
        results.extend(end.unwrap_or_else(|panic| resume_unwind(panic))?);
    }
    results.sort_by_key(|(i, _)| *i);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use anyhow::bail;

    use super::*;

    #[test]
    fn the_order_is_that_of_the_items() -> Result<()> {
        // The first waits for the second, so it can't be done before.
        let both = Barrier::new(2);
        let results = on_each(&[1, 2], 2, |item| {
            both.wait();
            Ok(item * 10)
        })?;
        assert_eq!(results, [10, 20]);
        Ok(())
    }

    #[test]
    fn an_error_is_the_end() {
        let begun = AtomicUsize::new(0);
        let result = on_each(&[0, 1, 2, 3], 1, |item| {
            begun.fetch_add(1, Ordering::Relaxed);
            if *item == 1 {
                bail!("it is one");
            }
            Ok(())
        });
        assert_eq!(
            result.expect_err("the second fails").to_string(),
            "it is one"
        );
        assert_eq!(begun.into_inner(), 2);
    }

    #[test]
    fn nothing_to_do() -> Result<()> {
        let results = on_each(&[], 4, |item: &u8| Ok(*item))?;
        assert!(results.is_empty());
        Ok(())
    }
}
