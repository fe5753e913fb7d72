//! Where somebody inside an environment may want to go: destinations as they are written, and addresses that nobody
//! may reach whatever is listed. The configuration is checked by the same rules that the proxy enforces.

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
pub struct Target {
    /// Name or address, in lower case, without brackets or a final dot.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

impl Target {
    /// Reads the head of a CONNECT request.
    pub fn of_request(head: &str) -> Option<Self> {
        let mut words = head.lines().next()?.split(' ');
        match (words.next()?, words.next()?, words.next()?, words.next()) {
            ("CONNECT", target, "HTTP/1.1" | "HTTP/1.0", None) => Self::parse(target),
            _ => None,
        }
    }

    /// Reads `name:port`, `address:port` or `[address]:port`. Spellings of one destination become the same.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0)?;
        if let Ok(address) = host.parse::<IpAddr>() {
            let host = address.to_string();
            return Some(Self { host, port });
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        (!host.is_empty()
            && host.len() <= 253
            && host.chars().all(plain)
            && !is_read_as_a_number(&host))
        .then_some(Self { host, port })
    }

    /// Whether this can be said to lead nowhere without looking a name up: a forbidden address, or this machine's
    /// own name.
    pub fn is_never_reached(&self) -> bool {
        self.host == "localhost"
            || self.host.ends_with(".localhost")
            || self.host.parse().is_ok_and(is_forbidden)
    }
}

/// `127.1`, `0x7f000001` and the like: no name, and an address only to those who read it the old way.
fn is_read_as_a_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let digits = last.strip_prefix("0x");
    digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        || (!last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether an address can never be reached, whatever is listed: loopback, link-local, unspecified, multicast,
/// broadcast, metadata services, and every way to write those in another family.
pub fn is_forbidden(address: IpAddr) -> bool {
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
    fn spellings_of_one_destination_are_one_and_what_is_neither_name_nor_address_is_none() {
        let target = |text: &str| Target::parse(text).unwrap();
        assert_eq!(target("Hooks.Example.:443"), target("hooks.example:443"));
        assert_eq!(target("[2001:DB8:0::1]:1"), target("[2001:db8::1]:1"));
        for text in [
            "hooks.example",
            "hooks.example:",
            "hooks.example:0",
            "hooks.example:65536",
            "hooks.example:+443",
            "*.example:443",
            "https://hooks.example:443",
            "hooks.example:443/path",
            ":443",
            "::1",
            "[::1]",
            "127.1:80",
            "2130706433:80",
            "0x7f000001:80",
            "a.0x1:80",
            "a b:1",
        ] {
            assert_eq!(Target::parse(text), None, "{text}");
        }
    }

    #[test]
    fn this_machines_own_name_is_never_reached() {
        for text in [
            "localhost:1",
            "LOCALHOST.:1",
            "a.localhost:1",
            "[::1]:1",
            "169.254.169.254:80",
        ] {
            assert!(Target::parse(text).unwrap().is_never_reached(), "{text}");
        }
        for text in ["localhost.example:1", "10.0.0.7:1"] {
            assert!(!Target::parse(text).unwrap().is_never_reached(), "{text}");
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
