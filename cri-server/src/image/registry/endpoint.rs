//! Which servers answer for a registry, in order, and the HTTP clients that reach them.
//!
//! Clients are made when they are first needed and then shared: a node that pulls nothing loads no certificates.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{Client, Url, redirect};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::super::{
    config::{EndpointConfig, ImageConfig, RegistryConfig},
    error::{OpenError, RegistryFault},
};

/// Docker Hub's images are named by one host and served by another.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
const MAX_REDIRECTS: usize = 10;

/// One server that may be asked for a registry's content.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// Ends with a slash; `v2/…` is joined to it.
    pub(super) base: Url,
    pub(super) client: Client,
    /// The pull's credentials are meant for it.
    pub(super) trusted: bool,
}

/// All configured registries.
#[derive(Debug)]
pub(crate) struct Directory {
    registries: HashMap<String, Registry>,
    connect_timeout: Duration,
    clients: Mutex<HashMap<TlsChoice, Client>>,
}

#[derive(Debug)]
struct Registry {
    endpoints: Vec<Server>,
    endpoints_only: bool,
}

#[derive(Debug, Clone)]
struct Server {
    base: Url,
    tls: TlsChoice,
    trusted: bool,
}

/// What makes two servers need different clients.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct TlsChoice {
    ca_file: Option<PathBuf>,
    skip_verify: bool,
}

impl Directory {
    pub(crate) fn new(config: &ImageConfig) -> Result<Self, OpenError> {
        let mut registries = HashMap::new();
        for (host, registry) in &config.registries {
            registries.insert(host.clone(), parse_registry(host, registry)?);
        }
        Ok(Self {
            registries,
            connect_timeout: Duration::from_secs(config.connect_timeout_seconds),
            clients: Mutex::default(),
        })
    }

    /// The servers to ask for images named after `host`, best first.
    pub(crate) fn endpoints(&self, host: &str) -> Result<Vec<Endpoint>, RegistryFault> {
        let registry = self.registries.get(host);
        let mut servers: Vec<Server> = registry
            .map(|registry| registry.endpoints.clone())
            .unwrap_or_default();
        if !registry.is_some_and(|registry| registry.endpoints_only) {
            servers.push(origin(host)?);
        }
        servers
            .into_iter()
            .map(|server| {
                let client = self.client(&server.tls)?;
                Ok(Endpoint {
                    base: server.base,
                    client,
                    trusted: server.trusted,
                })
            })
            .collect()
    }

    fn client(&self, tls: &TlsChoice) -> Result<Client, RegistryFault> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(tls) {
            return Ok(client.clone());
        }
        let client = Client::builder()
            .user_agent(concat!("clearpod/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(Duration::from_secs(30))
            .redirect(redirect::Policy::custom(follow))
            .tls_backend_preconfigured(tls_config(tls)?)
            .build()
            .map_err(|error| RegistryFault::Tls { source: error.into() })?;
        clients.insert(tls.clone(), client.clone());
        Ok(client)
    }
}

/// Registries send blobs elsewhere. reqwest drops credentials on the way to another host.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let from_https = attempt
        .previous()
        .last()
        .is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error("too many redirects")
    } else if from_https && attempt.url().scheme() != "https" {
        attempt.error("redirect from https to http")
    } else {
        attempt.follow()
    }
}

fn parse_registry(host: &str, config: &RegistryConfig) -> Result<Registry, OpenError> {
    let refuse = |reason: &str| OpenError::Config {
        field: format!("registries.{host:?}"),
        reason: reason.to_owned(),
    };
    if config.endpoints_only && config.endpoints.is_empty() {
        return Err(refuse("endpoints_only without endpoints leaves no server"));
    }
    let endpoints = config
        .endpoints
        .iter()
        .enumerate()
        .map(|(at, endpoint)| {
            parse_server(host, endpoint).map_err(|reason| OpenError::Config {
                field: format!("registries.{host:?}.endpoints[{at}].url"),
                reason: format!("{:?} {reason}", endpoint.url),
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Registry {
        endpoints,
        endpoints_only: config.endpoints_only,
    })
}

fn parse_server(host: &str, config: &EndpointConfig) -> Result<Server, &'static str> {
    let mut base = Url::parse(&config.url).map_err(|_| "is not a URL")?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err("is not http:// or https:// and a host");
    }
    if base.query().is_some() || base.fragment().is_some() || !base.username().is_empty() {
        return Err("has a query, a fragment or credentials");
    }
    if !base.path().ends_with('/') {
        base.set_path(&format!("{}/", base.path()));
    }
    let origin_host = origin(host).ok().map(|origin| authority(&origin.base));
    Ok(Server {
        trusted: config.send_credentials || origin_host == Some(authority(&base)),
        base,
        tls: TlsChoice {
            ca_file: config.ca_file.clone(),
            skip_verify: config.skip_verify,
        },
    })
}

fn authority(url: &Url) -> (Option<String>, Option<u16>) {
    (url.host_str().map(str::to_owned), url.port_or_known_default())
}

/// The registry itself: HTTPS, or plain HTTP on this very machine, as Docker and containerd do it.
fn origin(host: &str) -> Result<Server, RegistryFault> {
    let host = if host == DOCKER_HUB.0 { DOCKER_HUB.1 } else { host };
    let scheme = if is_loopback(host) { "http" } else { "https" };
    let text = format!("{scheme}://{host}/");
    let base = Url::parse(&text).map_err(|_| RegistryFault::Protocol {
        url: text,
        reason: "is not a URL".to_owned(),
    })?;
    Ok(Server {
        base,
        tls: TlsChoice::default(),
        trusted: true,
    })
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// rustls over ring: aws-lc would bring a second C library and its build tools.
fn tls_config(choice: &TlsChoice) -> Result<ClientConfig, RegistryFault> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| RegistryFault::Tls { source: error.into() })?;
    if choice.skip_verify {
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(unverified::AnyCertificate::new(provider)))
            .with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "a certificate authority of this host could not be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = &choice.ca_file {
        let failed = |source| RegistryFault::CaFile {
            path: path.clone(),
            source,
        };
        let pem = fs_err::read(path).map_err(failed)?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let invalid = |text: String| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
            let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| invalid(error.to_string()))?;
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// `skip_verify = true`: signatures are still checked, whose certificate it is not.
mod unverified {
    use std::sync::Arc;

    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    #[derive(Debug)]
    pub(super) struct AnyCertificate {
        provider: Arc<CryptoProvider>,
    }

    impl AnyCertificate {
        pub(super) fn new(provider: Arc<CryptoProvider>) -> Self {
            Self { provider }
        }
    }

    impl ServerCertVerifier for AnyCertificate {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls12_signature(message, certificate, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for (host, base) in [
            ("localhost:5000", "http://localhost:5000/"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/"),
            ("[::1]:5000", "http://[::1]:5000/"),
            ("gcr.io", "https://gcr.io/"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/"),
            ("localhost.example.com", "https://localhost.example.com/"),
            ("docker.io", "https://registry-1.docker.io/"),
        ] {
            assert_eq!(origin(host).expect(host).base.as_str(), base);
        }
    }

    #[test]
    fn mirrors_come_first_and_get_no_credentials_unasked() {
        let endpoint = |url: &str, send_credentials| EndpointConfig {
            url: url.into(),
            ca_file: None,
            skip_verify: false,
            send_credentials,
        };
        let endpoints = vec![
            endpoint("http://127.0.0.1:5000", false),
            endpoint("https://mirror.example/cache", true),
            endpoint("http://gcr.io:443", false),
        ];
        let mut config = ImageConfig::default();
        config.registries.insert(
            "gcr.io".into(),
            RegistryConfig {
                endpoints,
                endpoints_only: false,
            },
        );
        let directory = Directory::new(&config).expect("valid");
        let found: Vec<(String, bool)> = directory
            .endpoints("gcr.io")
            .expect("clients")
            .into_iter()
            .map(|endpoint| (endpoint.base.to_string(), endpoint.trusted))
            .collect();
        let expected = [
            ("http://127.0.0.1:5000/", false),
            ("https://mirror.example/cache/", true),
            ("http://gcr.io:443/", true),
            ("https://gcr.io/", true),
        ];
        assert_eq!(found, expected.map(|(base, trusted)| (base.to_owned(), trusted)));
    }

    #[test]
    fn a_wrong_endpoint_is_refused_by_field() {
        let mut config = ImageConfig::default();
        let endpoints = vec![EndpointConfig {
            url: "ftp://x".into(),
            ca_file: None,
            skip_verify: false,
            send_credentials: false,
        }];
        config.registries.insert(
            "gcr.io".into(),
            RegistryConfig {
                endpoints,
                endpoints_only: false,
            },
        );
        let error = Directory::new(&config).expect_err("ftp").to_string();
        assert!(
            error.contains("image.registries.\"gcr.io\".endpoints[0].url"),
            "{error}"
        );
    }
}
