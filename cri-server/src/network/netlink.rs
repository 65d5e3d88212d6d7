//! A netlink connection into a network namespace, used from the node's.

use std::{fmt, io, path::Path};

use futures_util::TryStreamExt;
use rtnetlink::{
    Handle,
    packet_route::link::{LinkAttribute, LinkMessage},
};
use tokio::task::JoinHandle;

use super::{NetworkError, namespace};

/// Requests go to the namespace in which the socket was opened, wherever the caller runs.
pub(super) struct Netlink {
    pub(super) handle: Handle,
    connection: JoinHandle<()>,
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// An interface as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) mac: String,
    pub(super) mtu: u32,
}

impl Netlink {
    /// Opens a socket in the namespace bound to `path`.
    pub(super) async fn connect(path: &Path) -> Result<Self, NetworkError> {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle) = namespace::inside(path, move || {
            // The socket registers with the runtime, which the short-lived thread is no part of.
            let _entered = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            Ok::<_, io::Error>((runtime.spawn(connection), handle))
        })
        .await?;
        Ok(Self { handle, connection })
    }

    /// The interface of that name.
    pub(super) async fn link(&self, name: &str) -> Result<Link, NetworkError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        let message = found
            .try_next()
            .await
            .map_err(failed(format!("find interface {name}")))?;
        message
            .map(|message| Link::from_message(&message))
            .ok_or_else(|| NetworkError::Unsupported(format!("there is no interface {name}")))
    }
}

impl Link {
    fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            mac: String::new(),
            mtu: 0,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => link.mac = mac_text(bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                _ => {}
            }
        }
        link
    }
}

/// "02:00:00:00:00:01"
pub(super) fn mac_text(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

/// For `map_err`.
pub(super) fn failed(operation: String) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink {
        operation,
        source: Box::new(source),
    }
}
