//! The network policy of an environment: everything is denied, both ways, but what the profile allows.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::profile::{Exception, Network};

/// Where metadata services and neighbours on the wire are: never opened by a wider range.
const NEVER: [&str; 2] = ["169.254.0.0/16", "fe80::/10"];
/// The namespace and label of the cluster's DNS.
const DNS: (&str, &str) = ("kube-system", "kube-dns");
const DNS_PORT: u16 = 53;

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    address: IpAddr,
    prefix: u8,
}

impl Range {
    /// Reads `address/prefix`. `None` when it is none, or has bits behind its prefix.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        let (bits, width) = bits(address);
        let is_whole = prefix <= width && bits & !mask(prefix, width) == 0;
        is_whole.then_some(Self { address, prefix })
    }

    /// Whether nothing opens it: link-local addresses, and with them metadata services.
    pub fn is_never_open(self) -> bool {
        let never = NEVER.into_iter().filter_map(Self::parse);
        never.into_iter().any(|never| never.contains(self))
    }

    /// Whether every address of `other` is in it.
    fn contains(self, other: Self) -> bool {
        let ((bits, width), (other_bits, other_width)) = (bits(self.address), bits(other.address));
        width == other_width
            && self.prefix <= other.prefix
            && other_bits & mask(self.prefix, width) == bits
    }
}

/// An address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    }
}

fn mask(prefix: u8, width: u8) -> u128 {
    let free = u32::from(width.saturating_sub(prefix));
    let all = u128::MAX >> (128 - u32::from(width));
    u128::MAX.checked_shl(free).unwrap_or(0) & all
}

/// The spec of the policy.
pub(super) fn policy(network: &Network) -> Value {
    let mut egress = Vec::new();
    let mut ingress = Vec::new();
    if network.inside {
        let inside = json!({"podSelector": {}});
        egress.push(json!({"to": [inside]}));
        ingress.push(json!({"from": [inside]}));
    }
    if network.dns {
        let (namespace, app) = DNS;
        let port = |protocol: &str| json!({"protocol": protocol, "port": DNS_PORT});
        egress.push(json!({
            "to": [{
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "podSelector": {"matchLabels": {"k8s-app": app}},
            }],
            "ports": [port("UDP"), port("TCP")],
        }));
    }
    for exception in &network.allow {
        match exception {
            Exception {
                to: Some(range), ..
            } => egress.push(open("to", range, &exception.ports)),
            Exception {
                from: Some(range), ..
            } => ingress.push(open("from", range, &exception.ports)),
            // A fault of the configuration: nothing is opened.
            Exception { .. } => {}
        }
    }
    json!({
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    })
}

fn open(way: &str, range: &str, ports: &[u16]) -> Value {
    let mut block = json!({"cidr": range});
    let never: Vec<_> = NEVER
        .into_iter()
        .filter(|never| {
            let ranges = (Range::parse(range), Range::parse(never));
            matches!(ranges, (Some(range), Some(never)) if range.contains(never))
        })
        .collect();
    if let (false, Some(block)) = (never.is_empty(), block.as_object_mut()) {
        block.insert("except".into(), json!(never));
    }
    let mut rule = json!({way: [{"ipBlock": block}]});
    if let (false, Some(rule)) = (ports.is_empty(), rule.as_object_mut()) {
        let ports: Vec<_> = ports
            .iter()
            .map(|port| json!({"protocol": "TCP", "port": port}))
            .collect();
        rule.insert("ports".into(), json!(ports));
    }
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_whole_and_of_one_kind() {
        for good in [
            "203.0.113.0/24",
            "0.0.0.0/0",
            "2001:db8::/32",
            "::/0",
            "10.1.2.3/32",
        ] {
            assert!(Range::parse(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "10.0.0.1",
            "10.0.0.1/24",
            "10.0.0.0/33",
            "::1/0",
            "x/8",
            "10.0.0.0/-1",
        ] {
            assert!(Range::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn nothing_is_open_but_what_is_said() {
        let closed = Network {
            inside: false,
            dns: false,
            ..Network::default()
        };
        let policy = policy(&closed);
        assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(
            (&policy["ingress"], &policy["egress"]),
            (&json!([]), &json!([]))
        );
    }

    #[test]
    fn a_wide_range_never_opens_the_metadata_service() {
        let exception = |to: &str| Network {
            inside: false,
            dns: false,
            allow: vec![Exception {
                to: Some(to.into()),
                from: None,
                ports: vec![443],
            }],
            ..Network::default()
        };
        for wide in ["0.0.0.0/0", "128.0.0.0/1", "169.0.0.0/8"] {
            let block = policy(&exception(wide))["egress"][0]["to"][0]["ipBlock"].clone();
            assert_eq!(block["except"], json!(["169.254.0.0/16"]), "{wide}");
        }
        let never = |text| Range::parse(text).unwrap().is_never_open();
        assert!(never("169.254.0.0/16") && never("169.254.169.254/32") && never("fe80::/64"));
        assert!(!never("169.0.0.0/8") && !never("203.0.113.0/24"));
        let narrow = policy(&exception("203.0.113.0/24"));
        assert_eq!(
            narrow["egress"][0]["to"][0]["ipBlock"],
            json!({"cidr": "203.0.113.0/24"})
        );
        assert_eq!(
            narrow["egress"][0]["ports"],
            json!([{"protocol": "TCP", "port": 443}])
        );
        assert_eq!(narrow["ingress"], json!([]));
    }
}
