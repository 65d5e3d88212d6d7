//! Joins two interfaces of a namespace: what arrives on one leaves through the other. tc-mirred(8), tc-u32(8).

use rtnetlink::packet_route::tc::TcHandle;

use super::{
    NetworkError,
    netlink::{Link, Netlink, failed},
};

/// All protocols (`ETH_P_ALL`), in network byte order as tc wants it.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();
/// Parent of the filters of an ingress qdisc.
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// Redirects both ways. The frames never meet the namespace's own stack.
pub(super) async fn join(netlink: &Netlink, one: &Link, other: &Link) -> Result<(), NetworkError> {
    redirect(netlink, one, other).await?;
    redirect(netlink, other, one).await
}

async fn redirect(netlink: &Netlink, from: &Link, to: &Link) -> Result<(), NetworkError> {
    let index =
        i32::try_from(from.index).map_err(|_| NetworkError::Unsupported("interface index".to_owned()))?;
    let handle = &netlink.handle;
    let what = format!("redirect from interface {} to {}", from.index, to.index);
    handle
        .qdisc()
        .add(index)
        .ingress()
        .execute()
        .await
        .map_err(failed(what.clone()))?;
    let filter = handle
        .traffic_filter(index)
        .add()
        .parent(INGRESS.into())
        .priority(1)
        .protocol(ETH_P_ALL);
    let filter = filter.redirect(to.index).map_err(failed(what.clone()))?;
    filter.execute().await.map_err(failed(what))
}
