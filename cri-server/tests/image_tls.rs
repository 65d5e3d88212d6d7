//! Registries behind HTTPS: whose certificates are accepted.
//!
//! A TLS end in front of the plain test registry, with a certificate authority made for the test.

use std::sync::Arc;

use cri_server::image::{
    EndpointConfig, ImageConfig, ImageStore, PullError, RegistryConfig, RegistryFault,
    testing::{TarBuilder, TestImage, TestRegistry},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

struct TlsEnd {
    port: u16,
    /// Of the authority that signed the server's certificate.
    ca_pem: String,
    _tasks: JoinSet<()>,
}

impl TlsEnd {
    async fn before(registry: &TestRegistry) -> Self {
        let ca_key = KeyPair::generate().expect("key");
        let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).expect("authority").pem();
        let key = KeyPair::generate().expect("key");
        let server = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let certificate = server
            .signed_by(&key, &Issuer::new(ca, ca_key))
            .expect("certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let port = listener.local_addr().expect("address").port();
        let plain = registry.host();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, plain) = (acceptor.clone(), plain.clone());
                connections.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let Ok(mut registry) = TcpStream::connect(plain).await else {
                        return;
                    };
                    drop(tokio::io::copy_bidirectional(&mut stream, &mut registry).await);
                });
            }
        });
        Self {
            port,
            ca_pem,
            _tasks: tasks,
        }
    }
}

#[tokio::test]
async fn only_certificates_of_known_authorities_are_accepted() {
    let folder = tempfile::tempdir().expect("folder");
    let registry = TestRegistry::start().await;
    let image = TestImage::of_layer(&TarBuilder::new().file("f", 0o644, "x").finish());
    registry.push("a", "1", &image);
    let tls = TlsEnd::before(&registry).await;
    let ca_file = folder.path().join("ca.pem");
    fs_err::write(&ca_file, &tls.ca_pem).expect("write");

    for (name, ca_file, skip_verify, accepted) in [
        ("unknown authority", None, false, false),
        ("configured authority", Some(ca_file.clone()), false, true),
        ("no verification", None, true, true),
    ] {
        let url = format!("https://localhost:{}", tls.port);
        let endpoints = vec![EndpointConfig {
            url,
            ca_file,
            skip_verify,
            send_credentials: false,
        }];
        let mut config = ImageConfig {
            root: folder.path().join(name),
            max_attempts: 1,
            ..ImageConfig::default()
        };
        let registry = RegistryConfig {
            endpoints,
            endpoints_only: true,
        };
        config.registries.insert("registry.example".to_owned(), registry);
        let store = ImageStore::open(config).expect("store");
        match store.pull("registry.example/a:1", None).await {
            Ok(id) => assert!(accepted && id == image.config_digest, "{name}: pulled"),
            Err(error) => {
                let unreachable = matches!(
                    &*error,
                    PullError::Registry {
                        source: RegistryFault::Unreachable { .. },
                        ..
                    }
                );
                assert!(!accepted && unreachable, "{name}: {error:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_authority_file_that_is_none_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let ca_file = folder.path().join("ca.pem");
    let mut config = ImageConfig {
        root: folder.path().join("images"),
        ..ImageConfig::default()
    };
    let url = "https://localhost:9".to_owned();
    let endpoints = vec![EndpointConfig {
        url,
        ca_file: Some(ca_file.clone()),
        skip_verify: false,
        send_credentials: false,
    }];
    config.registries.insert(
        "registry.example".to_owned(),
        RegistryConfig {
            endpoints,
            endpoints_only: true,
        },
    );
    let store = ImageStore::open(config).expect("store");
    let error = store
        .pull("registry.example/a:1", None)
        .await
        .expect_err("no such file");
    assert!(
        matches!(&*error, PullError::Registry { source: RegistryFault::CaFile { path, .. }, .. } if *path == ca_file),
        "{error:?}"
    );
}
