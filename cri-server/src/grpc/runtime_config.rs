//! RuntimeConfig: which cgroup driver kubelet is to use.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::{
    config::CgroupDriver,
    sandbox::{Node, RequestError},
};

pub(super) async fn handle(
    node: Arc<Node>,
    _: cri::RuntimeConfigRequest,
) -> Result<cri::RuntimeConfigResponse, RequestError> {
    let driver = match node.config.cgroup_driver {
        CgroupDriver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        CgroupDriver::Systemd => cri::CgroupDriver::Systemd,
    };
    Ok(cri::RuntimeConfigResponse {
        linux: Some(cri::LinuxRuntimeConfiguration {
            cgroup_driver: driver.into(),
        }),
    })
}
