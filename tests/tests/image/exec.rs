//! What the documentation runs with `kubectl exec`, in containers of the overlays that it names: by the same words, under the same seccomp profile.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pendguard_tests::deployment::{Container, Image, Node};
use pendguard_tests::enforcing::{JOIN_LIMIT, all, until_admitted, until_rejected};
use pendguard_tests::protocol::Method;
use pendguard_tests::replica::Replica;
use pendguard_tests::wait::{WAIT_LIMIT, wait_for, within};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;

use super::{AUDIT, CALLS, ENFORCE, USER, gate, overlay_here};

/// How long a call may take to be told, before there is another one.
const LOOK: Duration = Duration::from_millis(100);

/// A command to its end.
async fn output(container: &Container, words: &[&str]) -> Result<(Output, String)> {
    let output = within("the command ends", WAIT_LIMIT, async {
        container.exec(words)?.output().await.context("crun")
    })
    .await??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output, said))
}

/// `pendguard status`: it shows a replica.
async fn status(container: &Container, replica: &Replica) -> Result<()> {
    let (output, said) = output(container, &["pendguard", "status"]).await?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(said.contains(&replica.pod.name), "{said}");
    Ok(())
}

/// `pendguard doctor`: what is possible with the container's privileges, as its exit status and its lines say.
async fn doctor(container: &Container, enforcement: &str, exit: i32) -> Result<()> {
    let (output, said) = output(container, &["pendguard", "doctor"]).await?;
    ensure!(output.status.code() == Some(exit), "{output:?}");
    for (what, outcome) in [("audit", "supported"), ("enforcement", enforcement)] {
        let is = |line: &str| {
            line.strip_prefix(what)
                .is_some_and(|rest| rest.trim_start().starts_with(outcome))
        };
        ensure!(said.lines().any(is), "{what}: {said}");
    }
    Ok(())
}

/// `pendguard watch | head -1`: a call, and then it ends by itself.
async fn watch(container: &Container, words: &[&str], replica: &mut Replica) -> Result<String> {
    let words = [&["pendguard", "watch"], words].concat();
    let mut child = container.exec(&words)?.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    // It tells what comes after it has begun, and doesn't say when that is.
    let line = wait_for("a call is told", WAIT_LIMIT, async || {
        replica.client.call(Method::PendingFn, 1).await?;
        match timeout(LOOK, lines.next_line()).await {
            Ok(line) => Ok(Some(line?.context("it has ended")?)),
            Err(_) => Ok(None),
        }
    })
    .await?;
    drop(lines);
    let status = within("it ends when nobody reads", WAIT_LIMIT, child.wait()).await??;
    ensure!(status.success(), "{status}");
    Ok(line)
}

#[tokio::test]
async fn where_calls_are_counted() -> Result<()> {
    let image = Image::unpack()?;
    let pod = overlay_here("audit").await?;
    let node = Node::new(AUDIT)?;
    let mut one = Replica::start_as_user("exec-audit", 1, USER).await?;
    let container = Container::start(&image, &node, &pod).await?;
    status(&container, &one).await?;
    doctor(&container, "not supported", 1).await?;
    let line = watch(&container, &[], &mut one).await?;
    ensure!(line.contains("would_reject"), "{line}");
    container.agent.stop().await?;
    Ok(())
}

#[tokio::test]
async fn where_calls_are_rejected() -> Result<()> {
    let image = Image::unpack()?;
    let pod = overlay_here("enforce-gate").await?;
    let node = Node::new(ENFORCE)?;
    let mut one = Replica::start_as_user("exec-gate", 1, USER).await?;
    let Some(container) = gate(&image, &node, &pod).await? else {
        return Ok(());
    };
    until_rejected(&mut one).await?;
    status(&container, &one).await?;
    doctor(&container, "supported", 0).await?;
    let rejected = ["--namespace", "test", "--verdict", "rejected"];
    let line = watch(&container, &rejected, &mut one).await?;
    ensure!(line.contains("rejected"), "{line}");
    let (off, _) = output(&container, &["pendguard", "mode", "off"]).await?;
    ensure!(off.status.success(), "{off:?}");
    until_admitted(&mut one, JOIN_LIMIT).await?;
    all(&mut one, CALLS, true).await?;
    container.agent.stop().await?;
    Ok(())
}
