//! A registry on loopback that does what a test tells it, also wrong things.
//!
//! HTTP/1.1 by hand, one request per connection: the point is to cut connections and lie about bytes.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::image::{TestImage, digest};

/// What goes wrong with requests whose path contains the given text; each is used up by one request unless said.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection is closed after this many bytes of the body.
    CutAfter(usize),
    /// This status, with no body.
    Status(u16),
    /// Other bytes of the same length, for ever.
    Corrupt,
    /// Nothing for this long, then the answer.
    Stall(Duration),
    /// The body is said to be complete but is shorter, for ever.
    ShortBody(usize),
    /// A redirect to this URL, for ever.
    Redirect(String),
    /// Each 4 KiB of the body takes this long, for ever.
    Slow(Duration),
}

/// Who may pull, and how that is asked.
#[derive(Debug, Clone)]
pub enum Login {
    Basic {
        username: String,
        password: String,
    },
    /// A token server at `/token`, which wants the same.
    Bearer {
        username: String,
        password: String,
    },
}

#[derive(Debug)]
pub struct TestRegistry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Aborted when the registry is dropped.
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct State {
    blobs: HashMap<String, Vec<u8>>,
    /// By `repository:tag` and `repository@digest`: media type and bytes.
    manifests: HashMap<String, (String, Vec<u8>)>,
    faults: Vec<(String, Fault)>,
    login: Option<Login>,
    ranges: bool,
    requests: Vec<String>,
}

struct Request {
    path: String,
    query: String,
    headers: HashMap<String, String>,
}

impl TestRegistry {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("address");
        let state = Arc::new(Mutex::new(State {
            ranges: true,
            ..State::default()
        }));
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let shared = Arc::clone(&shared);
                connections.spawn(async move { serve(stream, address, &shared).await });
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            state,
            _tasks: tasks,
        }
    }

    /// `127.0.0.1:port`, as it stands in references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Offers an image under `repository:tag`, and under its digest.
    pub fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        let mut state = lock(&self.state);
        state.blobs.extend(image.blobs.iter().cloned());
        let document = (image.media_type.clone(), image.manifest.clone());
        state.manifests.insert(
            format!("{repository}@{}", image.manifest_digest()),
            document.clone(),
        );
        state.manifests.insert(format!("{repository}:{tag}"), document);
    }

    /// Offers an index over images for `linux/<architecture>` and returns its digest.
    pub fn push_index(&self, repository: &str, tag: &str, images: &[(&str, &TestImage)]) -> String {
        let media_type = "application/vnd.oci.image.index.v1+json";
        let mut entries = Vec::new();
        for (architecture, image) in images {
            self.push(repository, &format!("{tag}-{architecture}"), image);
            entries.push(json!({
                "mediaType": image.media_type, "digest": image.manifest_digest(), "size": image.manifest.len(),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
        let bytes = index.to_string().into_bytes();
        let index_digest = digest(&bytes);
        let mut state = lock(&self.state);
        let document = (media_type.to_owned(), bytes);
        state
            .manifests
            .insert(format!("{repository}@{index_digest}"), document.clone());
        state.manifests.insert(format!("{repository}:{tag}"), document);
        index_digest
    }

    /// Makes requests go wrong whose path contains `path`.
    pub fn fail(&self, path: &str, fault: Fault) {
        lock(&self.state).faults.push((path.to_owned(), fault));
    }

    pub fn clear_faults(&self) {
        lock(&self.state).faults.clear();
    }

    pub fn require_login(&self, login: Login) {
        lock(&self.state).login = Some(login);
    }

    /// Answers range requests with the whole blob, as some registries do.
    pub fn without_ranges(&self) {
        lock(&self.state).ranges = false;
    }

    /// `path?query` of the requests so far whose path contains `text`, with the range that was asked for.
    pub fn requests(&self, text: &str) -> Vec<String> {
        lock(&self.state)
            .requests
            .iter()
            .filter(|request| request.contains(text))
            .cloned()
            .collect()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(mut stream: TcpStream, address: SocketAddr, state: &Mutex<State>) {
    let Some(request) = read_request(&mut stream).await else {
        return;
    };
    let range = request.headers.get("range").cloned();
    let (fault, login, ranges) = {
        let mut state = lock(state);
        state.requests.push(format!(
            "{}?{} {}",
            request.path,
            request.query,
            range.as_deref().unwrap_or("")
        ));
        let at = state
            .faults
            .iter()
            .position(|(path, _)| request.path.contains(path));
        let fault = at.map(|at| {
            let lasting = matches!(
                state.faults[at].1,
                Fault::Corrupt | Fault::ShortBody(_) | Fault::Redirect(_) | Fault::Slow(_)
            );
            if lasting {
                state.faults[at].1.clone()
            } else {
                state.faults.remove(at).1
            }
        });
        (fault, state.login.clone(), state.ranges)
    };
    if request.path == "/token" {
        token(&mut stream, &request, login.as_ref()).await;
        return;
    }
    if let Some(challenge) = login
        .as_ref()
        .and_then(|login| challenge(login, &request, address))
    {
        let header = format!("WWW-Authenticate: {challenge}\r\n");
        answer(&mut stream, 401, &header, b"{}").await;
        return;
    }
    let Some((media_type, body)) = find(state, &request.path) else {
        let error = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such thing"}]}"#;
        answer(&mut stream, 404, "", error).await;
        return;
    };
    let mut headers = format!("Content-Type: {media_type}\r\n");
    let from = range.filter(|_| ranges).and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    let (status, body) = match from {
        Some(from) => {
            headers += &format!(
                "Content-Range: bytes {from}-{}/{}\r\n",
                body.len() - 1,
                body.len()
            );
            (206, body[from..].to_vec())
        }
        None => (200, body),
    };
    deliver(&mut stream, status, &headers, body, fault).await;
}

async fn deliver(
    stream: &mut TcpStream,
    status: u16,
    headers: &str,
    mut body: Vec<u8>,
    fault: Option<Fault>,
) {
    match fault {
        None => answer(stream, status, headers, &body).await,
        Some(Fault::Status(status)) => answer(stream, status, "", b"").await,
        Some(Fault::Redirect(to)) => answer(stream, 307, &format!("Location: {to}\r\n"), b"").await,
        Some(Fault::ShortBody(length)) => answer(stream, status, headers, &body[..length]).await,
        Some(Fault::Corrupt) => {
            let at = body.len() / 2;
            body[at] ^= 0xff;
            answer(stream, status, headers, &body).await;
        }
        Some(Fault::Stall(time)) => {
            tokio::time::sleep(time).await;
            answer(stream, status, headers, &body).await;
        }
        Some(Fault::CutAfter(length)) => {
            head(stream, status, headers, body.len()).await;
            send(stream, &body[..length.min(body.len())]).await;
        }
        Some(Fault::Slow(time)) => {
            head(stream, status, headers, body.len()).await;
            for piece in body.chunks(4096) {
                send(stream, piece).await;
                tokio::time::sleep(time).await;
            }
        }
    }
}

fn find(state: &Mutex<State>, path: &str) -> Option<(String, Vec<u8>)> {
    let state = lock(state);
    let rest = path.strip_prefix("/v2/")?;
    if let Some((_, digest)) = rest.split_once("/blobs/") {
        return Some((
            "application/octet-stream".to_owned(),
            state.blobs.get(digest)?.clone(),
        ));
    }
    let (repository, version) = rest.split_once("/manifests/")?;
    let separator = if version.starts_with("sha256:") { '@' } else { ':' };
    state
        .manifests
        .get(&format!("{repository}{separator}{version}"))
        .cloned()
}

/// `None` when the request may pass.
fn challenge(login: &Login, request: &Request, address: SocketAddr) -> Option<String> {
    let given = request
        .headers
        .get("authorization")
        .map(String::as_str)
        .unwrap_or_default();
    match login {
        Login::Basic { username, password } => {
            let wanted = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
            (given != wanted).then(|| "Basic realm=\"test\"".to_owned())
        }
        Login::Bearer { .. } => (given != "Bearer let-me-in")
            .then(|| format!("Bearer realm=\"http://{address}/token\",service=\"test\",scope=\"ignored\"")),
    }
}

async fn token(stream: &mut TcpStream, request: &Request, login: Option<&Login>) {
    let Some(Login::Bearer { username, password }) = login else {
        answer(stream, 404, "", b"").await;
        return;
    };
    let wanted = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
    let scoped = request.query.contains("scope=repository%3A") && request.query.contains("service=test");
    if request.headers.get("authorization") == Some(&wanted) && scoped {
        answer(stream, 200, "", br#"{"token":"let-me-in"}"#).await;
    } else {
        answer(stream, 401, "", b"{}").await;
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(text).ok()?;
    let mut lines = text.lines();
    let target = lines.next()?.split(' ').nth(1)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Some(Request {
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
    })
}

async fn answer(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) {
    head(stream, status, headers, body.len()).await;
    send(stream, body).await;
}

async fn head(stream: &mut TcpStream, status: u16, headers: &str, length: usize) {
    let head =
        format!("HTTP/1.1 {status} Test\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    send(stream, head.as_bytes()).await;
}

/// The client may be gone: that is its right.
async fn send(stream: &mut TcpStream, bytes: &[u8]) {
    if let Err(error) = stream.write_all(bytes).await {
        tracing::debug!(%error, "client went away");
    }
}
