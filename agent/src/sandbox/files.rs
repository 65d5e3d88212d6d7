//! /etc/resolv.conf, /etc/hosts, /etc/hostname and /etc/machine-id as the containers of the pod can have them.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use proto::agent::v1::{ConfigureSandboxRequest, DnsConfig};

/// Writes the files into `directory`.
///
/// # Errors
/// What writing answers.
pub(crate) fn write(directory: &Path, request: &ConfigureSandboxRequest) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(
        directory.join("resolv.conf"),
        resolv_conf(&request.dns.clone().unwrap_or_default()),
    )?;
    fs::write(directory.join("hosts"), hosts(request))?;
    fs::write(directory.join("hostname"), format!("{}\n", request.hostname))?;
    fs::write(directory.join("machine-id"), format!("{}\n", request.machine_id))
}

/// resolv.conf(5).
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        line(&mut text, &format!("search {}", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        line(&mut text, &format!("nameserver {server}"));
    }
    if !dns.options.is_empty() {
        line(&mut text, &format!("options {}", dns.options.join(" ")));
    }
    text
}

/// hosts(5).
fn hosts(request: &ConfigureSandboxRequest) -> String {
    let mut text = String::new();
    line(&mut text, "127.0.0.1\tlocalhost");
    line(&mut text, "::1\tlocalhost ip6-localhost ip6-loopback");
    let addresses = request
        .interfaces
        .iter()
        .flat_map(|interface| &interface.addresses);
    for address in addresses.filter(|_| !request.hostname.is_empty()) {
        let address = address.split('/').next().unwrap_or(address);
        line(&mut text, &format!("{address}\t{}", request.hostname));
    }
    for extra in &request.hosts {
        line(&mut text, extra);
    }
    text
}

/// What came from outside stays on its own line.
fn line(text: &mut String, line: &str) {
    let line = line.replace(['\n', '\r'], " ");
    // Writing to a String cannot fail.
    writeln!(text, "{line}").ok();
}

#[cfg(test)]
mod tests {
    use proto::agent::v1::Interface;

    use super::*;

    #[test]
    fn files_are_written_as_the_resolver_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let request = ConfigureSandboxRequest {
            hostname: "web-0".to_owned(),
            dns: Some(DnsConfig {
                servers: vec!["10.96.0.10".to_owned(), "fd00::a\noptions evil".to_owned()],
                searches: vec!["default.svc.cluster.local".to_owned(), "cluster.local".to_owned()],
                options: vec!["ndots:5".to_owned()],
            }),
            interfaces: vec![Interface {
                addresses: vec!["10.88.0.5/16".to_owned(), "fd00::5/64".to_owned()],
                ..Interface::default()
            }],
            hosts: vec!["10.0.0.1\tregistry".to_owned()],
            ..ConfigureSandboxRequest::default()
        };
        write(directory.path(), &request).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(
            read("resolv.conf"),
            "search default.svc.cluster.local cluster.local\nnameserver 10.96.0.10\n\
             nameserver fd00::a options evil\noptions ndots:5\n"
        );
        assert_eq!(
            read("hosts"),
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.88.0.5\tweb-0\nfd00::5\tweb-0\n\
             10.0.0.1\tregistry\n"
        );
        assert_eq!(read("hostname"), "web-0\n");
    }
}
