//! What may be reached from inside an environment. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses at which clouds hand out the machine's own credentials, beside the link-local one.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Where somebody inside wants to go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// Name or address, in lower case, without brackets or a final dot.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Target {
    /// Reads the head of a CONNECT request.
    pub(super) fn of_request(head: &str) -> Option<Self> {
        let mut words = head.lines().next()?.split(' ');
        match (words.next()?, words.next()?, words.next()?, words.next()) {
            ("CONNECT", target, "HTTP/1.1" | "HTTP/1.0", None) => Self::parse(target),
            _ => None,
        }
    }

    /// Reads `name:port`, `address:port` or `[address]:port`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        (!host.is_empty() && host.len() <= 253 && host.chars().all(plain))
            .then_some(Self { host, port })
    }
}

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The profile does not list it.
    NotListed,
    /// It leads to this machine, or to where machines get their credentials.
    ForbiddenAddress,
    /// It does not answer, or its name is not known.
    Unreachable,
    /// It could not be written down.
    NotRecorded,
}

impl Refusal {
    /// The stable code.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::NotListed => "not_listed",
            Self::ForbiddenAddress => "forbidden_address",
            Self::Unreachable => "unreachable",
            Self::NotRecorded => "not_recorded",
        }
    }
}

/// What a profile lists.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowed(BTreeSet<Target>);

impl Allowed {
    /// Takes `name:port` texts; what is none is left out, and so refused.
    pub(super) fn new(listed: &[String]) -> Self {
        Self(
            listed
                .iter()
                .filter_map(|text| Target::parse(text))
                .collect(),
        )
    }

    pub(super) fn lists(&self, target: &Target) -> bool {
        self.0.contains(target)
    }
}

/// Whether an address can never be reached, whatever is listed: loopback, link-local, unspecified, multicast,
/// broadcast, metadata services, and every way to write those in another family.
pub(super) fn is_forbidden(address: IpAddr) -> bool {
    METADATA.contains(&address)
        || match address {
            IpAddr::V4(address) => {
                address.is_loopback()
                    || address.is_link_local()
                    || address.is_unspecified()
                    || address.is_multicast()
                    || address.is_broadcast()
                    || address.octets().first() == Some(&0)
            }
            IpAddr::V6(address) => {
                address.is_loopback()
                    || address.is_unspecified()
                    || address.is_multicast()
                    || address.is_unicast_link_local()
                    || embedded(address).is_some_and(|inner| is_forbidden(IpAddr::V4(inner)))
            }
        }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, by NAT64 or by 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(v4(high, low))
        }
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_and_metadata_services_are_forbidden_in_every_spelling() {
        for address in [
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::ffff:169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "fd00:ec2::254",
        ] {
            assert!(is_forbidden(address.parse().unwrap()), "{address}");
        }
        for address in [
            "10.0.0.7",
            "192.0.2.1",
            "203.0.113.9",
            "2001:db8::1",
            "fd00::7",
            "::ffff:10.0.0.7",
        ] {
            assert!(!is_forbidden(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn only_what_is_listed_is_allowed_and_spelling_does_not_matter() {
        let allowed = Allowed::new(&[
            "Hooks.Example:443".into(),
            "[2001:db8::1]:8443".into(),
            "no port".into(),
        ]);
        let target = |text: &str| Target::parse(text).unwrap();
        assert!(
            allowed.lists(&target("hooks.example:443"))
                && allowed.lists(&target("HOOKS.example.:443"))
        );
        assert!(allowed.lists(&target("[2001:DB8::1]:8443")));
        for other in [
            "hooks.example:80",
            "a.hooks.example:443",
            "hooks.example.evil:443",
        ] {
            assert!(!allowed.lists(&target(other)), "{other}");
        }
    }

    #[test]
    fn only_a_connect_request_has_a_target() {
        assert_eq!(
            Target::of_request("CONNECT a.b:1 HTTP/1.1\r\nHost: c:2\r\n\r\n"),
            Target::parse("a.b:1")
        );
        for head in [
            "GET http://a.b:1/ HTTP/1.1\r\n\r\n",
            "CONNECT a.b HTTP/1.1\r\n\r\n",
            "CONNECT a.b:0 HTTP/1.1\r\n\r\n",
            "CONNECT a b:1 HTTP/1.1\r\n\r\n",
            "",
        ] {
            assert_eq!(Target::of_request(head), None, "{head}");
        }
    }
}
