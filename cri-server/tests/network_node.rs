//! Real namespaces, real CNI plugins: what a pod's frames meet, and that nothing of it is left behind. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use cri_server::network::{CniNetwork, Network, NetworkConfig, NetworkStatus, PodNetwork, PortMapping};

/// Length of the `virtio_net_hdr` that a tap with `IFF_VNET_HDR` puts before each frame by default.
const VNET_HEADER: usize = 10;

fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root");
    }
    if !Path::new("/usr/lib/cni/bridge").exists() && !Path::new("/opt/cni/bin/bridge").exists() {
        return Some("cni-plugins");
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("tun");
    }
    None
}

/// True when the test cannot run here and need not.
fn skip(test: &str) -> bool {
    let Some(what) = missing() else { return false };
    let required = std::env::var("CLEARPOD_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|one| one == what),
        "{test}: {what} is required and missing"
    );
    eprintln!("SKIPPED: {test} needs {what}");
    true
}

fn network(dir: &Path, bridge: &str) -> CniNetwork {
    let list = serde_json::json!({"cniVersion": "1.0.0", "name": "clearpod-test", "plugins": [
        {"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true,
         "ipam": {"type": "host-local", "dataDir": dir.join("leases"), "routes": [{"dst": "0.0.0.0/0"}],
                  "ranges": [[{"subnet": "10.213.0.0/24"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]});
    fs_err::create_dir_all(dir.join("conf")).unwrap();
    fs_err::write(dir.join("conf/10-test.conflist"), list.to_string()).unwrap();
    CniNetwork::new(NetworkConfig {
        conf_dir: dir.join("conf"),
        cache_dir: dir.join("cache"),
        ..NetworkConfig::default()
    })
}

fn pod(id: &str, port_mappings: Vec<PortMapping>) -> PodNetwork {
    PodNetwork {
        sandbox_id: id.to_owned(),
        name: "web".to_owned(),
        namespace: "default".to_owned(),
        port_mappings,
        ..PodNetwork::default()
    }
}

fn output(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything on the node that pods of these tests could leave behind.
fn traces(dir: &Path, bridge: &str) -> Vec<String> {
    let lines = |text: String, word: &str| {
        text.lines()
            .filter(|line| line.contains(word))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut traces = lines(output("mount", &[]), "clearpod-nettest");
    traces.extend(lines(output("iptables-save", &["-t", "nat"]), "nettest"));
    traces.extend(lines(output("ip", &["-o", "link"]), &format!("master {bridge}")));
    let leases = fs_err::read_dir(dir.join("leases/clearpod-test"));
    let names = leases
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    // A lease is a file named by its address; the lock and the last address stay.
    traces.extend(names.filter(|name| name.starts_with("10.213")));
    traces
}

struct Guest {
    tap: File,
    mac: [u8; 6],
    ip: Ipv4Addr,
}

impl Guest {
    fn new(tap: OwnedFd, mac: &str, ip: Ipv4Addr) -> Self {
        let bytes: Vec<u8> = mac
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        Self {
            tap: tap.into(),
            mac: bytes.try_into().unwrap(),
            ip,
        }
    }

    fn send(&mut self, frame: &[u8]) {
        let mut bytes = vec![0; VNET_HEADER];
        bytes.extend_from_slice(frame);
        self.tap.write_all(&bytes).unwrap();
    }

    fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            match self.tap.read(&mut buffer) {
                Ok(len) if len > VNET_HEADER && wanted(&buffer[VNET_HEADER..len]) => {
                    return buffer[VNET_HEADER..len].to_vec();
                }
                Err(error) if error.kind() != ErrorKind::WouldBlock => panic!("tap: {error}"),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        panic!("no such frame came");
    }

    fn ask_who_has(&mut self, target: Ipv4Addr) {
        let mut frame = vec![0xff; 6];
        frame.extend(self.mac);
        frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(self.mac);
        frame.extend(self.ip.octets());
        frame.extend([0; 6]);
        frame.extend(target.octets());
        self.send(&frame);
    }

    /// The hardware address of `target`, by ARP.
    fn resolve(&mut self, target: Ipv4Addr) -> [u8; 6] {
        self.ask_who_has(target);
        let answer = self.receive(|frame| is_arp(frame, 2) && frame[28..32] == target.octets());
        answer[22..28].try_into().unwrap()
    }

    /// An echo request to `target` at `gateway`'s hardware address; returns when the reply is there.
    fn ping(&mut self, target: Ipv4Addr, gateway: [u8; 6]) {
        let mut icmp = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
        icmp.extend(*b"clearpod");
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum);
        let total = u8::try_from(20 + icmp.len()).unwrap();
        let mut ip = vec![0x45, 0, 0, total, 0, 1, 0, 0, 64, 1, 0, 0];
        ip.extend(self.ip.octets());
        ip.extend(target.octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum);
        let mut frame = gateway.to_vec();
        frame.extend(self.mac);
        frame.extend([0x08, 0x00]);
        frame.extend(ip);
        frame.extend(icmp);
        self.send(&frame);
        self.receive(|frame| {
            frame.len() >= 42 && frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 0
        });
    }
}

fn is_arp(frame: &[u8], operation: u8) -> bool {
    frame.len() >= 42 && frame[12..14] == [0x08, 0x06] && frame[20..22] == [0, operation]
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

async fn start(network: &CniNetwork, id: &str, port_mappings: Vec<PortMapping>) -> Guest {
    let prepared = network.prepare(id).await.unwrap();
    let attachment = network.attach(&pod(id, port_mappings)).await.unwrap();
    assert_eq!(attachment.mtu, 1500);
    let gateway = Some("10.213.0.1".parse().unwrap());
    let default = attachment
        .routes
        .iter()
        .find(|route| route.destination == "0.0.0.0/0");
    assert_eq!(
        default.and_then(|route| route.gateway),
        gateway,
        "{:?}",
        attachment.routes
    );
    let IpAddr::V4(ip) = attachment.ips[0] else {
        panic!("{:?}", attachment.ips)
    };
    assert!(
        attachment.addresses.contains(&format!("{ip}/24")),
        "{:?}",
        attachment.addresses
    );
    Guest::new(prepared.tap, &attachment.mac, ip)
}

#[tokio::test]
async fn the_tap_takes_the_pods_place_and_nothing_is_left_behind() {
    if skip("the_tap_takes_the_pods_place_and_nothing_is_left_behind") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bridge = "clrpodtest0";
    let network = network(dir.path(), bridge);
    assert_eq!(network.status(), NetworkStatus::Ready);
    let port = PortMapping {
        host_port: 18080,
        container_port: 80,
        protocol: "tcp".to_owned(),
        host_ip: String::new(),
    };

    let mut one = start(&network, "nettest-one", vec![port]).await;
    let mut two = start(&network, "nettest-two", Vec::new()).await;
    // Not of the first: portmap 1.1.1 answers CHECK of an IPv4-only mapping with "ipv6 chain not found".
    network.check("nettest-two").await.unwrap();

    let gateway: Ipv4Addr = "10.213.0.1".parse().unwrap();
    let mac = one.resolve(gateway);
    one.ping(gateway, mac);
    // The other pod's question reaches this guest, although the namespace on the way has that very address.
    two.ask_who_has(one.ip);
    let own = one.ip;
    one.receive(|frame| is_arp(frame, 1) && frame[38..42] == own.octets());
    assert!(
        !traces(dir.path(), bridge).is_empty(),
        "the test must see what could be left behind"
    );

    drop((one, two));
    for id in ["nettest-one", "nettest-two", "nettest-one"] {
        network.detach(id).await.unwrap();
    }
    let left = traces(dir.path(), bridge);
    output("ip", &["link", "del", bridge]);
    assert_eq!(left, Vec::<String>::new());
    let leftovers = network.leftovers().await.unwrap();
    assert!(
        !leftovers
            .iter()
            .any(|id| ["nettest-one", "nettest-two"].contains(&id.as_str())),
        "{leftovers:?}"
    );
}

#[tokio::test]
async fn a_namespace_without_an_attachment_is_found_and_removed() {
    if skip("a_namespace_without_an_attachment_is_found_and_removed") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let network = network(dir.path(), "clrpodtest1");
    let prepared = network.prepare("nettest-half").await.unwrap();
    assert!(prepared.namespace.exists());
    assert!(
        network.prepare("nettest-half").await.is_err(),
        "a second namespace of that name"
    );
    assert!(
        network
            .leftovers()
            .await
            .unwrap()
            .contains(&"nettest-half".to_owned())
    );
    network.detach("nettest-half").await.unwrap();
    assert!(!prepared.namespace.exists());
}
