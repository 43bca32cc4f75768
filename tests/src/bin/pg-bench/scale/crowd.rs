//! A process with many connections that makes calls on them at a given rate: a replica's data plane, as far as the agent can see.
//! Nobody answers: both ends of each connection are this process's.

use std::io::{BufRead as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::tap::kinds::Drain;
use crate::wire;

/// Between two bursts of calls.
const BURST: Duration = Duration::from_millis(1);
/// Descriptors of a connection: two ends and a pipe.
const DESCRIPTORS: u64 = 4;

struct Connection<'a> {
    ours: &'a UnixStream,
    calls: u32,
    drain: Drain<'a>,
}

/// Opens the connections, says `ready`, and does what standard input says: `calls RATE MILLIS`, `writes RATE MILLIS` (of one byte to
/// /dev/null). Answers how many it made.
pub fn run(connections: u64) -> Result<()> {
    allow_descriptors(connections * DESCRIPTORS + 64)?;
    let pairs: Vec<_> = (0..connections)
        .map(|_| UnixStream::pair())
        .collect::<Result<_, _>>()?;
    let mut all = Vec::new();
    for (ours, theirs) in &pairs {
        let begins = wire::client_begins();
        (&mut &*ours).write_all(&begins)?;
        let drain = Drain::new(theirs)?;
        drain.take(begins.len())?;
        all.push(Connection {
            ours,
            calls: 0,
            drain,
        });
    }
    let mut null = std::fs::File::create("/dev/null")?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<_> = line.split(' ').collect();
        let [what, rate, millis] = words[..] else {
            bail!("unknown command: {line:?}");
        };
        let (rate, limit) = (rate.parse()?, Duration::from_millis(millis.parse()?));
        let made = match what {
            "calls" => {
                let mut at = 0;
                paced(rate, limit, || {
                    at = (at + 1) % all.len().max(1);
                    let connection = all.get_mut(at).context("no connection")?;
                    let request = wire::request(wire::stream(connection.calls));
                    connection.calls += 1;
                    (&mut &*connection.ours).write_all(&request)?;
                    connection.drain.take(request.len())
                })?
            }
            "writes" => paced(rate, limit, || Ok(null.write_all(&[0])?))?,
            _ => bail!("unknown command: {line:?}"),
        };
        println!("{made}");
    }
    Ok(())
}

/// Does it at a rate a second, for so long; how often it was done.
fn paced(rate: u64, limit: Duration, mut act: impl FnMut() -> Result<()>) -> Result<u64> {
    let begun = Instant::now();
    let mut done = 0;
    loop {
        let elapsed = begun.elapsed().min(limit);
        let due = (rate as f64 * elapsed.as_secs_f64()) as u64;
        while done < due {
            act()?;
            done += 1;
            if begun.elapsed() >= limit {
                return Ok(done);
            }
        }
        if elapsed >= limit {
            return Ok(done);
        }
        std::thread::sleep(BURST);
    }
}

fn allow_descriptors(wanted: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
        let more = Rlimit {
            current: Some(wanted),
            maximum,
        };
        setrlimit(Resource::Nofile, more).with_context(|| format!("{wanted} descriptors"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_and_ends() {
        let mut count = 0;
        let limit = Duration::from_millis(50);
        let begun = Instant::now();
        let done = paced(1000, limit, || {
            count += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(done, count);
        // Never more than was due, however slow the machine is.
        assert!(done <= 50 && begun.elapsed() >= limit, "{done}");
        assert_eq!(paced(0, Duration::ZERO, || bail!("never")).unwrap(), 0);
    }
}
