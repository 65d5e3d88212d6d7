//! What a client of the CRI socket may send: the bytes of its connection, and requests.

use prost::Message;
use proto::cri::v1 as cri;

use super::{authority, convert, sandbox_port_forward};
use crate::{container, sandbox, stats::fixture, streaming::Wanted};

/// A whole connection in pieces of any size: h2 sees the same bytes however they arrive, and what it sees would not be
/// changed once more.
///
/// # Panics
/// When it is not so.
pub fn authority(bytes: &[u8], piece: usize) {
    let whole = authority::rewritten(bytes, bytes.len());
    let pieces = authority::rewritten(bytes, piece);
    assert_eq!(whole, pieces, "in pieces of {piece}");
    assert_eq!(authority::rewritten(&whole, piece), whole, "a second time");
    // An empty value grows by a byte, and takes three at least.
    assert!(whole.len() <= bytes.len() * 2);
}

/// Any bytes as the request that `kind` stands for, through all of its conversion and validation that asks nobody else.
///
/// # Panics
/// When something is accepted that must not be.
pub fn cri_requests(kind: u8, bytes: &[u8]) {
    match kind % 8 {
        0 => decoded(bytes, |request: cri::RunPodSandboxRequest| {
            sandbox::fuzz::judge(&request);
            shown(&fixture::sandbox(request));
        }),
        1 => decoded(bytes, |request: cri::CreateContainerRequest| {
            let sandbox = request.sandbox_config.clone().unwrap_or_default();
            container::fuzz::judge(request.config.clone().unwrap_or_default(), &sandbox);
            let view = fixture::container(request);
            drop(convert::container_status(&view));
            drop(convert::container(&view));
        }),
        2 => decoded(bytes, |request: cri::UpdateContainerResourcesRequest| {
            sandbox::fuzz::resize(request.linux.as_ref(), request.linux.as_ref());
        }),
        3 => decoded(bytes, |request: cri::UpdatePodSandboxResourcesRequest| {
            sandbox::fuzz::resize(request.resources.as_ref(), request.overhead.as_ref());
        }),
        4 => decoded(bytes, |request: cri::ExecRequest| {
            drop(Wanted::try_from(&request));
        }),
        5 => decoded(bytes, |request: cri::PortForwardRequest| {
            if let Ok(ports) = sandbox_port_forward::ports(&request.port) {
                assert!(!ports.contains(&0) && ports.len() <= 100);
            }
        }),
        6 => decoded(bytes, |request: cri::ListContainersRequest| {
            let view = fixture::container(cri::CreateContainerRequest::default());
            let filter = request.filter.unwrap_or_default();
            let matches = convert::container_matches(&filter, &convert::container(&view));
            // The container has no labels.
            assert!(!matches || filter.label_selector.is_empty());
        }),
        _ => decoded(bytes, |request: cri::PullImageRequest| {
            let image = request.image.unwrap_or_default().image;
            crate::image::testing::fuzz::reference(&image);
        }),
    }
}

fn decoded<M: Message + Default>(bytes: &[u8], judge: impl FnOnce(M)) {
    if let Ok(message) = M::decode(bytes) {
        judge(message);
    }
}

fn shown(view: &sandbox::SandboxView) {
    let status = convert::sandbox_status(view);
    let listed = convert::sandbox(view);
    assert_eq!(status.id, listed.id);
    assert!(convert::sandbox_matches(
        &cri::PodSandboxFilter::default(),
        &listed
    ));
}
