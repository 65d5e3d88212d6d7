//! The servers of one registry during one pull: who is asked, in which order, how often.
//!
//! A server that fails is passed over for the next; when all did, the round is repeated after a pause, unless every one
//! of them was certain. A blob goes on where it was cut, also from another server: content is addressed by digest.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, RANGE},
};

use super::{
    super::{
        config::ImageConfig,
        digest::Digest,
        error::RegistryFault,
        record::RegistryAuth,
        reference::{Reference, Version},
    },
    auth::{self, AuthFailure, Authorization, Credentials},
    endpoint::{Directory, Endpoint},
    transfer::{BodyFault, Trouble, read_limited, trouble, unanswered},
};

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Bytes of one connection that count as progress: a server that trickles is not asked for ever.
const PROGRESS: u64 = 64 * 1024;

/// Why something could not be fetched from any server.
#[derive(Debug)]
pub(crate) enum Failure {
    NotFound,
    Denied(String),
    TooLarge(u64),
    Fault(RegistryFault),
    /// The receiver of a blob wants no more.
    SinkClosed,
}

/// A manifest, index or configuration as it came.
#[derive(Debug)]
pub(crate) struct Document {
    /// From the `Content-Type` header, without parameters.
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    /// `Docker-Content-Digest`, when the server sent one.
    pub(crate) claimed: Option<String>,
}

/// Takes a blob's bytes in order.
pub(crate) trait BlobSink {
    /// `false` ends the transfer.
    fn accept(&mut self, bytes: Bytes) -> impl Future<Output = bool> + Send;
}

#[derive(Debug)]
pub(crate) struct Session {
    servers: Vec<ServerState>,
    repository: String,
    credentials: Credentials,
    idle: Duration,
    max_attempts: u32,
}

#[derive(Debug)]
struct ServerState {
    endpoint: Endpoint,
    authorization: Mutex<Authorization>,
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization")
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl ServerState {
    fn authorization(&self) -> MutexGuard<'_, Authorization> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// `auth` must be meant for the reference's registry; the caller has checked that.
    pub(crate) fn new(
        directory: &Directory,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        config: &ImageConfig,
    ) -> Result<Self, SessionError> {
        let credentials = match auth {
            Some(auth) => Credentials::parse(auth).map_err(SessionError::Credentials)?,
            None => Credentials::default(),
        };
        let servers = directory
            .endpoints(reference.registry())
            .map_err(SessionError::Endpoints)?
            .into_iter()
            .map(|endpoint| {
                let first = if endpoint.trusted {
                    credentials.up_front()
                } else {
                    Authorization::None
                };
                ServerState {
                    endpoint,
                    authorization: Mutex::new(first),
                }
            })
            .collect();
        Ok(Self {
            servers,
            repository: reference.repository().to_owned(),
            credentials,
            idle: Duration::from_secs(config.idle_timeout_seconds),
            max_attempts: config.max_attempts,
        })
    }

    pub(crate) async fn manifest(&self, version: &Version, limit: u64) -> Result<Document, Failure> {
        let name = match version {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(digest) => digest.to_string(),
        };
        self.document(&format!("manifests/{name}"), limit).await
    }

    /// A small blob, as a whole.
    pub(crate) async fn small_blob(&self, digest: &Digest, limit: u64) -> Result<Document, Failure> {
        self.document(&format!("blobs/{digest}"), limit).await
    }

    async fn document(&self, path: &str, limit: u64) -> Result<Document, Failure> {
        let mut rounds = Rounds::new(self.max_attempts);
        loop {
            for server in &self.servers {
                match self.document_from(server, path, limit).await {
                    Ok(Ok(document)) => return Ok(document),
                    Ok(Err(size)) => return Err(Failure::TooLarge(size)),
                    Err(trouble) => rounds.note(trouble),
                }
            }
            rounds.next().await?;
        }
    }

    async fn document_from(
        &self,
        server: &ServerState,
        path: &str,
        limit: u64,
    ) -> Result<Result<Document, u64>, Trouble> {
        let response = self.request(server, path, 0).await?;
        let url = response.url().to_string();
        let header = |name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.split(';').next().unwrap_or(value).trim().to_owned())
        };
        let media_type = header(CONTENT_TYPE.as_str()).unwrap_or_default();
        let claimed = header("docker-content-digest");
        match tokio::time::timeout(self.idle, read_limited(response, limit)).await {
            Ok(Ok(bytes)) => {
                let digest = Digest::of(&bytes);
                Ok(Ok(Document {
                    media_type,
                    bytes,
                    digest,
                    claimed,
                }))
            }
            Ok(Err(BodyFault::TooLarge(size))) => Ok(Err(size)),
            Ok(Err(BodyFault::Cut(source))) => Err(cut(&url, 0, Some(source))),
            Err(_) => Err(Trouble::Transient(RegistryFault::TimedOut {
                url,
                idle: self.idle,
            })),
        }
    }

    /// Streams a blob of exactly `size` bytes into `sink`, each byte once.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        sink: &mut impl BlobSink,
    ) -> Result<(), Failure> {
        let path = format!("blobs/{digest}");
        let mut received = 0;
        let mut rounds = Rounds::new(self.max_attempts);
        loop {
            for server in &self.servers {
                let before = received;
                match self.blob_from(server, &path, size, &mut received, sink).await {
                    Ok(true) => return Ok(()),
                    Ok(false) => return Err(Failure::SinkClosed),
                    Err(trouble) => {
                        tracing::debug!(blob = %digest, received, ?trouble, "blob transfer ended early");
                        rounds.note(trouble);
                    }
                }
                if received - before >= PROGRESS {
                    rounds.restart();
                }
            }
            rounds.next().await?;
        }
    }

    /// Continues a blob from one server. `Ok(false)` when the sink is closed.
    async fn blob_from(
        &self,
        server: &ServerState,
        path: &str,
        size: u64,
        received: &mut u64,
        sink: &mut impl BlobSink,
    ) -> Result<bool, Trouble> {
        let mut response = self.request(server, path, *received).await?;
        let url = response.url().to_string();
        // A server without ranges starts over; what is known already is read past.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            check_range(&response, *received)?;
            0
        } else {
            *received
        };
        while *received < size {
            let next = tokio::time::timeout(self.idle, response.chunk()).await;
            let mut chunk = match next {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Err(cut(&url, *received, None)),
                Ok(Err(source)) => return Err(cut(&url, *received, Some(source))),
                Err(_) => {
                    return Err(Trouble::Transient(RegistryFault::TimedOut {
                        url,
                        idle: self.idle,
                    }));
                }
            };
            let known = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= known as u64;
            let chunk = chunk.split_off(known);
            if *received + chunk.len() as u64 > size {
                return Err(Trouble::Final(RegistryFault::TooLong { url, expected: size }));
            }
            *received += chunk.len() as u64;
            if !chunk.is_empty() && !sink.accept(chunk).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A successful answer to one request, after a challenge if need be.
    async fn request(&self, server: &ServerState, path: &str, from: u64) -> Result<Response, Trouble> {
        let anonymous = Credentials::default();
        let credentials = if server.endpoint.trusted {
            &self.credentials
        } else {
            &anonymous
        };
        let url = self.url(server, path)?;
        let response = self.send(server, &url, from).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.checked(response).await;
        }
        let answer = auth::answer(&server.endpoint.client, &response, &self.repository, credentials);
        let authorization = match tokio::time::timeout(self.idle, answer).await {
            Ok(Ok(authorization)) => authorization,
            Ok(Err(AuthFailure::Refused(reason))) => return Err(Trouble::Denied(reason)),
            Ok(Err(AuthFailure::Exchange {
                url,
                source: Some(source),
                ..
            })) => {
                return Err(unanswered(&url, source));
            }
            Ok(Err(AuthFailure::Exchange {
                url,
                source: None,
                detail,
            })) => {
                return Err(Trouble::Transient(RegistryFault::Protocol {
                    url,
                    reason: detail,
                }));
            }
            Err(_) => {
                let url = url.to_string();
                return Err(Trouble::Transient(RegistryFault::TimedOut {
                    url,
                    idle: self.idle,
                }));
            }
        };
        *server.authorization() = authorization;
        let response = self.send(server, &url, from).await?;
        self.checked(response).await
    }

    async fn send(&self, server: &ServerState, url: &Url, from: u64) -> Result<Response, Trouble> {
        let authorization = server.authorization().clone();
        let mut request = server.endpoint.client.get(url.clone()).header(ACCEPT, MANIFESTS);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        match tokio::time::timeout(self.idle, authorization.apply(request).send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unanswered(url.as_str(), error)),
            Err(_) => {
                let url = url.to_string();
                Err(Trouble::Transient(RegistryFault::TimedOut {
                    url,
                    idle: self.idle,
                }))
            }
        }
    }

    async fn checked(&self, response: Response) -> Result<Response, Trouble> {
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(trouble(response, self.idle).await)
        }
    }

    fn url(&self, server: &ServerState, path: &str) -> Result<Url, Trouble> {
        let base = &server.endpoint.base;
        base.join(&format!("v2/{}/{path}", self.repository)).map_err(|_| {
            let reason = "the image's name makes no URL".to_owned();
            Trouble::Final(RegistryFault::Protocol {
                url: base.to_string(),
                reason,
            })
        })
    }
}

/// A session could not begin.
#[derive(Debug)]
pub(crate) enum SessionError {
    Credentials(&'static str),
    Endpoints(RegistryFault),
}

/// Rounds over all servers: how many are left, and what the last server of this one said.
///
/// The registry itself is asked last, so its answer counts: when it is certain, a mirror that is down is not waited for.
struct Rounds {
    max: u32,
    left: u32,
    pause: Duration,
    transient: bool,
    verdict: Option<Failure>,
}

impl Rounds {
    fn new(max_attempts: u32) -> Self {
        let max = max_attempts.max(1);
        Self {
            max,
            left: max,
            pause: FIRST_PAUSE,
            transient: false,
            verdict: None,
        }
    }

    fn note(&mut self, trouble: Trouble) {
        self.transient = matches!(trouble, Trouble::Transient(_));
        self.verdict = Some(match trouble {
            Trouble::NotFound => Failure::NotFound,
            Trouble::Denied(detail) => Failure::Denied(detail),
            Trouble::Final(fault) | Trouble::Transient(fault) => Failure::Fault(fault),
        });
    }

    /// Progress was made: the patience is whole again.
    fn restart(&mut self) {
        self.left = self.max;
        self.pause = FIRST_PAUSE;
    }

    async fn next(&mut self) -> Result<(), Failure> {
        self.left -= 1;
        let verdict = self.verdict.take().unwrap_or(Failure::NotFound);
        if !self.transient || self.left == 0 {
            return Err(verdict);
        }
        tracing::debug!(?verdict, pause = ?self.pause, "asking again");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.transient = false;
        Ok(())
    }
}

fn cut(url: &str, received: u64, source: Option<reqwest::Error>) -> Trouble {
    let source = source.map(reqwest::Error::without_url);
    Trouble::Transient(RegistryFault::ConnectionCut {
        url: url.to_owned(),
        received,
        source,
    })
}

/// A partial answer must begin where it was asked to: anything else would shift the blob's bytes.
fn check_range(response: &Response, from: u64) -> Result<(), Trouble> {
    let value = response
        .headers()
        .get("content-range")
        .and_then(|value| value.to_str().ok());
    let start = value
        .and_then(|value| value.strip_prefix("bytes "))
        .and_then(|range| range.split('-').next())
        .and_then(|start| start.trim().parse::<u64>().ok());
    if start == Some(from) {
        return Ok(());
    }
    let reason = format!("answered range {value:?} to a request from byte {from}");
    Err(Trouble::Final(RegistryFault::Protocol {
        url: response.url().to_string(),
        reason,
    }))
}
