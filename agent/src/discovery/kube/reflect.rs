//! Lists objects, then watches them from there, for ever.
//!
//! This is kube-runtime's `watcher` and `reflector` in small, and differs from them where an agent on every node must not go wrong: a watch that
//! is refused with `410 Gone` before it has begun lists anew (`watcher` 5.0 asks for the same version for ever); one that ends
//! as soon as it begins is waited for; a server that takes a question and never answers is given up; and all of it is counted.
//!
//! How the API server behaves is documented under "Kubernetes API Concepts": versions, `410 Gone`, bookmarks, and lists in pieces.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::{ListParams, VersionMatch, WatchEvent, WatchParams};
use kube::core::Request;
use serde::Deserialize;
use tokio_stream::StreamExt as _;

use super::access::Access;
use super::backoff::Backoff;
use super::failure::{Failure, Reason};
use super::objects::LABELS;
use super::{Known, Kube, Resource};

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// An answer to a list, or the beginning of one to a watch.
    pub answer: Duration,
    /// A watch, in seconds: then the server ends it, and it is begun anew.
    pub watch: u32,
    /// How much longer nothing may come from a watch before its connection is taken for dead.
    pub margin: Duration,
    /// A watch that ends sooner has failed.
    pub brief: Duration,
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            watch: 290,
            margin: Duration::from_secs(10),
            brief: Duration::from_secs(1),
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
        }
    }
}

/// The longest wait that the API server may ask for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Objects in one piece of a list: a pod has some 10 to 20 KiB.
const LIMIT: u32 = 100;

/// Keeps what is known of one kind of object.
pub struct Reflector<T> {
    kube: Arc<Kube>,
    access: Access,
    /// Which objects, by their fields.
    fields: Option<String>,
    timing: Timing,
    /// Where the watch goes on; `None` where everything is to be listed.
    version: Option<String>,
    /// Whether everything was listed once.
    listed: bool,
    /// Since when the watch goes well.
    well_since: Option<Instant>,
    kind: PhantomData<fn() -> T>,
}

#[derive(Deserialize)]
struct List<T> {
    #[serde(default)]
    metadata: ListMetadata,
    // Go writes an empty list as null.
    items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    more: String,
}

impl<T: Known> Reflector<T> {
    /// Of the pods those of this node.
    pub fn new(kube: Arc<Kube>, access: Access, node: &str, timing: Timing) -> Self {
        Self {
            kube,
            access,
            fields: (T::RESOURCE == Resource::Pods).then(|| format!("spec.nodeName={node}")),
            timing,
            version: None,
            listed: false,
            well_since: None,
            kind: PhantomData,
        }
    }

    /// Until it is dropped.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(self.timing.first, self.timing.longest);
        loop {
            let Err(failure) = self.session().await;
            if failure.reason == Reason::Gone {
                self.version = None;
            }
            let well = self.well_since.take().map(|since| since.elapsed());
            let wait = backoff.wait(well.unwrap_or_default());
            let wait = wait.max(failure.retry_after.unwrap_or_default().min(PATIENCE));
            self.kube.has_failed(T::RESOURCE, failure);
            tokio::time::sleep(wait).await;
        }
    }

    /// With one client, until something fails.
    async fn session(&mut self) -> Result<Infallible, Failure> {
        let client = self.access.client().await?;
        let request = Request::new(format!("/api/v1/{}", T::RESOURCE.name()));
        loop {
            let version = match &self.version {
                Some(version) => version.clone(),
                None => self.list(&client, &request).await?,
            };
            self.watch(&client, &request, version).await?;
        }
    }

    fn labels(&self) -> Option<String> {
        (T::RESOURCE == Resource::Pods).then(|| LABELS.to_owned())
    }

    /// Lists everything, in pieces, and returns its version.
    async fn list(&mut self, client: &Client, request: &Request) -> Result<String, Failure> {
        let mut parameters = ListParams {
            label_selector: self.labels(),
            field_selector: self.fields.clone(),
            limit: Some(LIMIT),
            ..ListParams::default()
        };
        if T::RESOURCE == Resource::Pods && !self.listed {
            // At first what the API server has in memory will do, as it does for the kubelet: when all agents start, the store
            // behind it is spared reading all pods of the cluster for each of them. The server then knows no limit.
            parameters.resource_version = Some("0".to_owned());
            parameters.version_match = Some(VersionMatch::NotOlderThan);
            parameters.limit = None;
        }
        let mut all = Vec::new();
        loop {
            let piece = request.list(&parameters).map_err(|e| unasked(&e))?;
            let text = self.in_time(client.request_text(piece)).await?;
            let list: List<T> = serde_json::from_str(&text).map_err(|e| unread(&e))?;
            for object in list.items.into_iter().flatten() {
                match object.keep() {
                    Ok(kept) => all.extend(kept),
                    Err(reason) => self.kube.knowledge().count(T::RESOURCE, reason),
                }
            }
            if !list.metadata.more.is_empty() {
                parameters.continue_token = Some(list.metadata.more);
                continue;
            }
            let version = list.metadata.resource_version;
            if version.is_empty() {
                return Err(Failure::new(Reason::Malformed, "a list without a version"));
            }
            self.kube.update(|knowledge| T::replace(knowledge, all));
            self.listed = true;
            self.version = Some(version.clone());
            return Ok(version);
        }
    }

    /// Follows what happens after `version`, until the server ends it.
    async fn watch(
        &mut self,
        client: &Client,
        request: &Request,
        version: String,
    ) -> Result<(), Failure> {
        let parameters = WatchParams {
            label_selector: self.labels(),
            field_selector: self.fields.clone(),
            timeout: Some(self.timing.watch),
            bookmarks: true,
            send_initial_events: false,
        };
        let request = request
            .watch(&parameters, &version)
            .map_err(|e| unasked(&e))?;
        let events = self.in_time(client.request_events::<T>(request)).await?;
        let mut events = std::pin::pin!(events);
        let begun = Instant::now();
        self.well_since.get_or_insert(begun);
        self.kube.is_synced(T::RESOURCE);
        let silence = Duration::from_secs(self.timing.watch.into()) + self.timing.margin;
        loop {
            let event = match tokio::time::timeout(silence, events.next()).await {
                Err(_) => {
                    let message = format!("nothing came for {} s", silence.as_secs());
                    return Err(Failure::new(Reason::Timeout, &message));
                }
                Ok(None) if begun.elapsed() < self.timing.brief => {
                    let message = "the watch ended as soon as it had begun";
                    return Err(Failure::new(Reason::Disconnected, message));
                }
                Ok(None) => return Ok(()),
                Ok(Some(event)) => event.map_err(|e| Failure::of(&e))?,
            };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.at(object.version());
                    self.kube.update(|knowledge| match object.put(knowledge) {
                        Ok(changed) => changed,
                        Err(reason) => {
                            knowledge.count(T::RESOURCE, reason);
                            false
                        }
                    });
                }
                WatchEvent::Deleted(object) => {
                    self.at(object.version());
                    self.kube.update(|knowledge| object.remove(knowledge));
                }
                WatchEvent::Bookmark(bookmark) => self.at(&bookmark.metadata.resource_version),
                WatchEvent::Error(status) => return Err(Failure::of_status(&status)),
            }
        }
    }

    /// Where the watch would go on.
    fn at(&mut self, version: &str) {
        if !version.is_empty() {
            self.version = Some(version.to_owned());
        }
    }

    async fn in_time<R>(
        &self,
        answer: impl Future<Output = Result<R, kube::Error>>,
    ) -> Result<R, Failure> {
        match tokio::time::timeout(self.timing.answer, answer).await {
            Ok(answer) => answer.map_err(|e| Failure::of(&e)),
            Err(_) => {
                let message = format!("no answer within {:?}", self.timing.answer);
                Err(Failure::new(Reason::Timeout, &message))
            }
        }
    }
}

/// A question that can't be put: a bug, or a node's name that no URL can carry.
fn unasked(error: &kube::core::request::Error) -> Failure {
    Failure::new(Reason::Config, &error.to_string())
}

/// An answer that can't be read. What it says isn't quoted.
fn unread(error: &serde_json::Error) -> Failure {
    let message = format!("no list, line {} column {}", error.line(), error.column());
    Failure::new(Reason::Malformed, &message)
}
