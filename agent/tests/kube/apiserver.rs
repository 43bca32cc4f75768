//! An API server for pods and namespaces, over real connections: lists and watches as "Kubernetes API Concepts" documents them, and whatever can go
//! wrong with them, on demand.
//!
//! * Every change has a version. A list is of one version, also where it is told in pieces (`limit`, `continue`).
//! * A watch tells what comes after its version, by selectors: what comes to match is ADDED, what matches no more is DELETED.
//! * Changes up to a version may be forgotten; whoever wants to go on from there gets `410 Gone`, as a status or as an ERROR event.
//! * With `resourceVersion=0` a list comes from memory, and `limit` is ignored.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Every question about this resource is answered with this status.
    pub refused: BTreeMap<&'static str, StatusCode>,
    /// So many seconds are to be waited, says such an answer.
    pub retry_after: Option<u32>,
    /// No list is ever answered.
    pub silent_lists: bool,
    /// No watch is ever answered.
    pub silent_watches: bool,
    /// A watch is answered, and then nothing comes, nor does it end.
    pub dead_watches: bool,
    /// A watch ends as soon as it has begun.
    pub brief_watches: bool,
    /// `410 Gone` comes as a status, not as an event.
    pub gone_as_status: bool,
    /// The next piece of a list is gone.
    pub next_piece_is_gone: bool,
    /// A watch breaks within its next event, so many octets from the beginning.
    pub cut: Option<usize>,
    /// A watch stops within its next event, so many octets from the beginning, and doesn't end.
    pub stall: Option<usize>,
    /// Lists stop after so many octets, and don't end.
    pub stalled_lists: Option<usize>,
    /// A watch's next event is an error with this status, and the last.
    pub error: Option<StatusCode>,
    /// An answer comes in chunks of so many octets.
    pub chunk: Option<usize>,
    /// Lists are no JSON.
    pub garbage: bool,
    /// The token that is asked for.
    pub token: Option<String>,
}

impl Faults {
    /// How a question about this resource is refused, if it is.
    fn refuse(&self, resource: &str, headers: &HeaderMap) -> Option<StatusCode> {
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok());
        let token = token.and_then(|value| value.strip_prefix("Bearer "));
        if self.token.is_some() && self.token.as_deref() != token {
            return Some(StatusCode::UNAUTHORIZED);
        }
        self.refused.get(resource).copied()
    }
}

/// A question that was put.
#[derive(Clone, Debug)]
pub struct Asked {
    pub resource: &'static str,
    pub query: HashMap<String, String>,
    pub status: u16,
}

impl Asked {
    pub fn is_watch(&self) -> bool {
        self.query.contains_key("watch")
    }

    pub fn says(&self, key: &str) -> Option<&str> {
        self.query.get(key).map(String::as_str)
    }
}

struct Change {
    version: u64,
    resource: &'static str,
    before: Option<Value>,
    now: Option<Value>,
}

/// What a list was when its first piece was told.
struct Pieces {
    version: u64,
    rest: Vec<Value>,
}

struct World {
    version: u64,
    objects: BTreeMap<(&'static str, String), Value>,
    changes: Vec<Change>,
    /// Changes up to this version are forgotten.
    forgotten: u64,
    pieces: HashMap<String, Pieces>,
    faults: Faults,
    asked: Vec<Asked>,
    /// Events that were created.
    events: Vec<Value>,
    /// Events that were refused.
    refused_events: usize,
    /// Events that were there already.
    known_events: usize,
    /// Objects told, in lists and events.
    told: usize,
}

struct Shared {
    world: Mutex<World>,
    version: watch::Sender<u64>,
    /// Whoever watches gets a bookmark when this changes.
    bookmarks: watch::Sender<u64>,
    /// Whoever watches is cut off when this changes.
    cuts: watch::Sender<u64>,
}

/// The API server.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl ApiServer {
    pub fn start() -> Self {
        let world = World {
            version: 1,
            objects: BTreeMap::new(),
            changes: Vec::new(),
            forgotten: 0,
            pieces: HashMap::new(),
            faults: Faults::default(),
            asked: Vec::new(),
            events: Vec::new(),
            refused_events: 0,
            known_events: 0,
            told: 0,
        };
        let mut server = Self {
            shared: Arc::new(Shared {
                world: Mutex::new(world),
                version: watch::Sender::new(1),
                bookmarks: watch::Sender::new(0),
                cuts: watch::Sender::new(0),
            }),
            address: "127.0.0.1:0".parse().unwrap(),
            runtime: None,
        };
        server.up();
        server
    }

    /// Listens, again where it did before.
    pub fn up(&mut self) {
        // Of its own, so that with it all connections end at once.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (send, bound) = std::sync::mpsc::channel();
        let router = Router::new()
            .route("/api/v1/{resource}", get(answer))
            .route("/api/v1/namespaces/{namespace}/events", post(create_event))
            .with_state(Arc::clone(&self.shared));
        let address = self.address;
        runtime.spawn(async move {
            // The runtime before may take a moment to let it go.
            let listener = loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            send.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        self.address = bound.recv_timeout(Duration::from_secs(30)).unwrap();
        self.runtime = Some(runtime);
    }

    /// Ends all connections and listens no more.
    pub fn down(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap()
    }

    /// Changes what goes wrong.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.world().faults);
    }

    /// Puts an object, new or in place of the one of that name.
    pub fn put(&self, resource: &'static str, mut object: Value) {
        let mut world = self.world();
        world.version += 1;
        object["metadata"]["resourceVersion"] = json!(world.version.to_string());
        let key = (resource, name(&object));
        let before = world.objects.insert(key, object.clone());
        let version = world.version;
        world.changes.push(Change {
            version,
            resource,
            before,
            now: Some(object),
        });
        drop(world);
        self.shared.version.send_replace(version);
    }

    /// Takes one away; false if it wasn't there.
    pub fn delete(&self, resource: &'static str, name: &str) -> bool {
        let mut world = self.world();
        let Some(mut before) = world.objects.remove(&(resource, name.to_owned())) else {
            return false;
        };
        world.version += 1;
        let version = world.version;
        // The object that is told has the version of its end.
        before["metadata"]["resourceVersion"] = json!(version.to_string());
        world.changes.push(Change {
            version,
            resource,
            before: Some(before),
            now: None,
        });
        drop(world);
        self.shared.version.send_replace(version);
        true
    }

    pub fn get(&self, resource: &'static str, name: &str) -> Option<Value> {
        let world = self.world();
        world.objects.get(&(resource, name.to_owned())).cloned()
    }

    /// All objects of a kind that match.
    pub fn matching(&self, resource: &'static str, query: &[(&str, &str)]) -> Vec<Value> {
        let query = query
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let selector = Selector::new(&query.collect()).unwrap();
        let world = self.world();
        let objects = world.objects.iter();
        objects
            .filter(|((of, _), object)| *of == resource && selector.matches(object))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Forgets all changes up to now.
    pub fn forget(&self) {
        let mut world = self.world();
        world.forgotten = world.version;
        world.changes.clear();
    }

    /// Ends all watches, within whatever they are telling.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|n| *n += 1);
    }

    /// Tells everybody who watches how far it is.
    pub fn bookmark(&self) {
        self.shared.bookmarks.send_modify(|n| *n += 1);
    }

    /// The events that were created, the first first.
    pub fn events(&self) -> Vec<Value> {
        self.world().events.clone()
    }

    pub fn refused_events(&self) -> usize {
        self.world().refused_events
    }

    /// How often an event was to be created that was there already.
    pub fn known_events(&self) -> usize {
        self.world().known_events
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.world().asked.clone()
    }

    /// Questions of one kind.
    pub fn count(&self, resource: &str, watch: bool) -> usize {
        let asked = self.world();
        let asked = asked.asked.iter();
        asked
            .filter(|asked| asked.resource == resource && asked.is_watch() == watch)
            .count()
    }

    pub fn version(&self) -> u64 {
        self.world().version
    }

    pub fn told(&self) -> usize {
        self.world().told
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.down();
    }
}

/// What an object is called, with its namespace.
pub fn name(object: &Value) -> String {
    let of = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    format!("{}/{}", of("namespace"), of("name"))
}

/// `fieldSelector` and `labelSelector`, as far as anybody here uses them.
struct Selector {
    node: Option<String>,
    labels: Vec<(String, Vec<String>)>,
}

impl Selector {
    fn new(query: &HashMap<String, String>) -> Result<Self, String> {
        let node = match query.get("fieldSelector") {
            None => None,
            Some(text) => match text.strip_prefix("spec.nodeName=") {
                Some(node) => Some(node.to_owned()),
                None => return Err(format!("field label not supported: {text}")),
            },
        };
        let mut labels = Vec::new();
        let mut rest = query.get("labelSelector").map_or("", String::as_str);
        while !rest.is_empty() {
            let requirement;
            // A comma within parentheses separates values.
            let end = match (rest.find('('), rest.find(',')) {
                (Some(open), Some(comma)) if open < comma => rest.find(')').unwrap() + 1,
                (Some(_), None) => rest.find(')').unwrap() + 1,
                (_, comma) => comma.unwrap_or(rest.len()),
            };
            (requirement, rest) = rest.split_at(end);
            rest = rest.trim_start_matches(',');
            let (key, values) = match requirement.split_once(" in ") {
                Some((key, values)) => {
                    let values = values.trim().trim_matches(['(', ')']);
                    (
                        key,
                        values.split(',').map(|v| v.trim().to_owned()).collect(),
                    )
                }
                None => match requirement.split_once('=') {
                    Some((key, value)) => (key, vec![value.to_owned()]),
                    None => return Err(format!("unable to parse requirement: {requirement}")),
                },
            };
            labels.push((key.trim().to_owned(), values));
        }
        Ok(Self { node, labels })
    }

    fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        self.node
            .as_deref()
            .is_none_or(|node| object["spec"]["nodeName"] == node)
            && self.labels.iter().all(|(key, values)| {
                label(key).is_some_and(|value| values.iter().any(|v| v == value))
            })
    }
}

fn status(code: StatusCode, reason: &str, message: &str, retry_after: Option<u32>) -> Value {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    if let Some(seconds) = retry_after {
        status["details"] = json!({"retryAfterSeconds": seconds});
    }
    status
}

fn gone() -> Value {
    status(
        StatusCode::GONE,
        "Expired",
        "too old resource version",
        None,
    )
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Path(resource): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let resource = match &*resource {
        "pods" => "pods",
        "namespaces" => "namespaces",
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let watches = query.contains_key("watch");
    let faults = shared.world.lock().unwrap().faults.clone();
    let refused = faults.refuse(resource, &headers);
    let note = |status: u16| {
        let query = query.clone();
        shared.world.lock().unwrap().asked.push(Asked {
            resource,
            query,
            status,
        });
    };
    if let Some(code) = refused {
        note(code.as_u16());
        let message =
            format!("{resource} is {code}: User \"system:serviceaccount:pendguard:pendguard\"");
        return answer_of(
            code,
            &status(code, "Refused", &message, faults.retry_after),
            None,
        );
    }
    if (watches && faults.silent_watches) || (!watches && faults.silent_lists) {
        note(0);
        std::future::pending::<Infallible>().await;
    }
    let selector = match Selector::new(&query) {
        Ok(selector) => selector,
        Err(error) => {
            note(400);
            let status = status(StatusCode::BAD_REQUEST, "BadRequest", &error, None);
            return answer_of(StatusCode::BAD_REQUEST, &status, None);
        }
    };
    if !watches {
        let (code, value) = list(&shared, resource, &query, &selector);
        note(code.as_u16());
        if faults.garbage {
            return (code, "<html>").into_response();
        }
        if let Some(octets) = faults.stalled_lists {
            return stalled(code, &value, octets);
        }
        return answer_of(code, &value, faults.chunk);
    }
    let version = query
        .get("resourceVersion")
        .and_then(|v| v.parse::<u64>().ok());
    let Some(version) = version else {
        note(400);
        return StatusCode::BAD_REQUEST.into_response();
    };
    let forgotten = shared.world.lock().unwrap().forgotten;
    if version < forgotten && faults.gone_as_status {
        note(410);
        return answer_of(StatusCode::GONE, &gone(), None);
    }
    note(200);
    let (send, events) = tokio::sync::mpsc::channel(4);
    // From here on, before anything is looked at or answered: nothing is missed.
    let changes = shared.version.subscribe();
    let bookmarks = shared.bookmarks.subscribe();
    let cuts = shared.cuts.subscribe();
    tokio::spawn(async move {
        let seconds = query.get("timeoutSeconds").and_then(|s| s.parse().ok());
        let watch = Watch {
            version: changes,
            bookmarks,
            cuts,
            shared: &shared,
            resource,
            selector,
            send,
        };
        let limit = Duration::from_secs(seconds.unwrap_or(3600));
        if faults.dead_watches {
            return watch.send.closed().await;
        }
        // The server ends it, in order.
        let _ = tokio::time::timeout(limit, watch.run(version)).await;
    });
    Body::from_stream(ReceiverStream::new(events)).into_response()
}

/// Takes an event, once a name, and only of the namespace that it is put into.
async fn create_event(
    State(shared): State<Arc<Shared>>,
    Path(namespace): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Ok(event) = serde_json::from_slice::<Value>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let mut world = shared.world.lock().unwrap();
    let name = &event["metadata"]["name"];
    let (code, value) = if let Some(code) = world.faults.refuse("events", &headers) {
        world.refused_events += 1;
        (code, status(code, "Refused", "events is refused", None))
    } else if event["metadata"]["namespace"] != namespace
        || event["involvedObject"]["namespace"] != namespace
    {
        let code = StatusCode::UNPROCESSABLE_ENTITY;
        (code, status(code, "Invalid", "another namespace", None))
    } else if world
        .events
        .iter()
        .any(|known| known["metadata"]["name"] == *name)
    {
        world.known_events += 1;
        let code = StatusCode::CONFLICT;
        (code, status(code, "AlreadyExists", "it exists", None))
    } else {
        world.events.push(event.clone());
        (StatusCode::CREATED, event)
    };
    drop(world);
    answer_of(code, &value, None)
}

/// A whole answer, perhaps in chunks.
fn answer_of(code: StatusCode, value: &Value, chunk: Option<usize>) -> Response {
    let text = value.to_string();
    let Some(size) = chunk else {
        return (code, text).into_response();
    };
    let (send, chunks) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for chunk in text.as_bytes().chunks(size) {
            let chunk = Ok::<_, Infallible>(Bytes::copy_from_slice(chunk));
            if send.send(chunk).await.is_err() {
                return;
            }
        }
    });
    (code, Body::from_stream(ReceiverStream::new(chunks))).into_response()
}

/// The beginning of an answer, whose rest never comes.
fn stalled(code: StatusCode, value: &Value, octets: usize) -> Response {
    let begun = Bytes::copy_from_slice(&value.to_string().as_bytes()[..octets]);
    let (send, chunks) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let _ = send.send(Ok::<_, Infallible>(begun)).await;
        send.closed().await;
    });
    (code, Body::from_stream(ReceiverStream::new(chunks))).into_response()
}

fn list(
    shared: &Shared,
    resource: &'static str,
    query: &HashMap<String, String>,
    selector: &Selector,
) -> (StatusCode, Value) {
    let mut world = shared.world.lock().unwrap();
    let from_memory = query.get("resourceVersion").is_some_and(|v| v == "0");
    let limit = query
        .get("limit")
        .and_then(|limit| limit.parse::<usize>().ok());
    let limit = limit.filter(|_| !from_memory);
    let Pieces { version, mut rest } = match query.get("continue") {
        Some(token) => {
            let gone_now = std::mem::take(&mut world.faults.next_piece_is_gone);
            match world.pieces.remove(token) {
                Some(pieces) if !gone_now => pieces,
                _ => return (StatusCode::GONE, gone()),
            }
        }
        None => Pieces {
            version: world.version,
            rest: world
                .objects
                .iter()
                .filter(|((of, _), object)| *of == resource && selector.matches(object))
                .map(|(_, object)| object.clone())
                .collect(),
        },
    };
    let after = rest.split_off(limit.unwrap_or(usize::MAX).min(rest.len()));
    world.told += rest.len();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if !after.is_empty() {
        let token = format!("{version}-{resource}-{}", after.len());
        metadata["continue"] = json!(token);
        metadata["remainingItemCount"] = json!(after.len());
        let pieces = Pieces {
            version,
            rest: after,
        };
        world.pieces.insert(token, pieces);
    }
    // As Go writes what has nothing in it.
    let items = if rest.is_empty() {
        Value::Null
    } else {
        rest.into()
    };
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
    (StatusCode::OK, list)
}

/// The end of an answer.
struct End;

struct Watch<'a> {
    shared: &'a Shared,
    version: watch::Receiver<u64>,
    bookmarks: watch::Receiver<u64>,
    cuts: watch::Receiver<u64>,
    resource: &'static str,
    selector: Selector,
    send: Sender<Result<Bytes, std::io::Error>>,
}

impl Watch<'_> {
    async fn run(mut self, mut at: u64) -> Result<(), End> {
        let faults = self.shared.world.lock().unwrap().faults.clone();
        if faults.brief_watches {
            return Ok(());
        }
        loop {
            self.version.borrow_and_update();
            let events = {
                let mut world = self.shared.world.lock().unwrap();
                if at < world.forgotten {
                    None
                } else {
                    let after = world.changes.iter().filter(|change| change.version > at);
                    let of = after.filter(|change| change.resource == self.resource);
                    let events: Vec<Value> = of.filter_map(|change| self.event(change)).collect();
                    at = world.version;
                    world.told += events.len();
                    Some(events)
                }
            };
            let Some(events) = events else {
                return self.tell(&json!({"type": "ERROR", "object": gone()})).await;
            };
            for event in events {
                let error = self.shared.world.lock().unwrap().faults.error.take();
                if let Some(code) = error {
                    let status = status(code, "Refused", "the watch is over", None);
                    return self.tell(&json!({"type": "ERROR", "object": status})).await;
                }
                self.tell(&event).await?;
            }
            tokio::select! {
                changed = self.version.changed() => changed.map_err(|_| End)?,
                changed = self.bookmarks.changed() => {
                    changed.map_err(|_| End)?;
                    self.bookmark(at).await?;
                }
                _ = self.cuts.changed() => return self.broken().await,
                () = self.send.closed() => return Err(End),
            }
        }
    }

    fn event(&self, change: &Change) -> Option<Value> {
        let matching = |object: &Option<Value>| {
            object
                .clone()
                .filter(|object| self.selector.matches(object))
        };
        let (kind, mut object) = match (matching(&change.before), matching(&change.now)) {
            (None, None) => return None,
            (None, Some(now)) => ("ADDED", now),
            (Some(_), Some(now)) => ("MODIFIED", now),
            (Some(before), None) => ("DELETED", before),
        };
        object["metadata"]["resourceVersion"] = json!(change.version.to_string());
        Some(json!({"type": kind, "object": object}))
    }

    async fn bookmark(&self, at: u64) -> Result<(), End> {
        let object = json!({
            "kind": "Object", "apiVersion": "v1",
            "metadata": {"resourceVersion": at.to_string(), "creationTimestamp": null},
        });
        self.tell(&json!({"type": "BOOKMARK", "object": object}))
            .await
    }

    /// The connection breaks.
    async fn broken(&self) -> Result<(), End> {
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let _ = self.send.send(Err(error)).await;
        Err(End)
    }

    async fn tell(&self, event: &Value) -> Result<(), End> {
        let text = format!("{event}\n");
        let (cut, stall, chunk) = {
            let mut world = self.shared.world.lock().unwrap();
            let faults = &mut world.faults;
            (faults.cut.take(), faults.stall.take(), faults.chunk)
        };
        let all = text.as_bytes();
        let told = match cut.or(stall) {
            Some(octets) => &all[..octets.min(all.len() - 1)],
            None => all,
        };
        for part in told.chunks(chunk.unwrap_or(usize::MAX)) {
            let part = Ok(Bytes::copy_from_slice(part));
            self.send.send(part).await.map_err(|_| End)?;
        }
        if cut.is_some() {
            return self.broken().await;
        }
        if stall.is_some() {
            // Not even when the watch's time is over.
            let send = self.send.clone();
            tokio::spawn(async move { send.closed().await });
            return Err(End);
        }
        Ok(())
    }
}
