//! Which addresses an issuer's keys may be fetched from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// From where keys may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Only addresses that the whole Internet can reach.
    Public,
    /// Loopback and private networks as well: the operator said so for this issuer.
    Private,
}

impl Reach {
    /// Whether keys may be fetched from `address`. Link-local addresses, where metadata services live, never.
    pub(super) fn allows(self, address: IpAddr) -> bool {
        match (self, plain(address)) {
            (Self::Public, IpAddr::V4(address)) => is_public_v4(address),
            (Self::Public, IpAddr::V6(address)) => is_public_v6(address),
            (Self::Private, IpAddr::V4(address)) => {
                is_public_v4(address)
                    || address.is_private()
                    || address.is_loopback()
                    || is_shared(address)
            }
            (Self::Private, IpAddr::V6(address)) => {
                is_public_v6(address) || address.is_loopback() || address.is_unique_local()
            }
        }
    }
}

/// The IPv4 address that an IPv6 address stands for (mapped, compatible, NAT64, 6to4), or the address itself.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let v4 =
        |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

const fn is_shared(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [100, 64..=127, ..])
}

const fn is_public_v4(address: Ipv4Addr) -> bool {
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_documentation()
        || is_shared(address)
        || matches!(
            address.octets(),
            [0 | 240..=255, ..]
                | [192, 0, 0, _]
                | [192, 88, 99, _]
                | [198, 18 | 19, ..]
                | [168, 63, 129, 16]
        ))
}

/// Global unicast, without the parts of it that are documentation, tunnels or benchmarks.
const fn is_public_v6(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [0x2000..=0x3fff, ..])
        && !matches!(
            address.segments(),
            [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..]
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: [&str; 17] = [
        "169.254.169.254",
        "169.254.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "192.0.0.192",
        "198.18.0.1",
        "fe80::1",
        "::",
        "ff02::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "2001:0:1::1",
        "168.63.129.16",
    ];
    const PRIVATE: [&str; 9] = [
        "127.0.0.1",
        "127.9.9.9",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.100.100.200",
        "::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
    ];
    const PUBLIC: [&str; 5] = [
        "1.1.1.1",
        "52.84.1.2",
        "2606:4700::1111",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
    ];

    #[test]
    fn t8_private_addresses_are_reached_only_where_the_operator_says_so() {
        let allows = |reach: Reach, text: &str| reach.allows(text.parse().unwrap());
        for text in NEVER {
            assert!(
                !allows(Reach::Public, text) && !allows(Reach::Private, text),
                "{text}"
            );
        }
        for text in PRIVATE {
            assert!(
                !allows(Reach::Public, text) && allows(Reach::Private, text),
                "{text}"
            );
        }
        for text in PUBLIC {
            assert!(
                allows(Reach::Public, text) && allows(Reach::Private, text),
                "{text}"
            );
        }
    }
}
