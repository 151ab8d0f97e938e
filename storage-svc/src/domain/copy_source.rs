//! From where this service reads on behalf of its users.
//!
//! A copy from a URL makes the service connect to an address that a user chose, from a place in the network that
//! the user may not be in. So unless it is allowed by name or network, an address has to be one that everybody can
//! reach ([`is_public`]). Names are judged by the addresses they have at the moment of the connection, whoever
//! runs their zone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Which sources may be read; the service's own blobs always may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySources {
    /// All with public addresses.
    pub public: bool,
    /// Hosts by name, whatever their addresses; in lower case.
    pub hosts: Vec<String>,
    /// Networks.
    pub networks: Vec<IpNet>,
}

impl Default for CopySources {
    fn default() -> Self {
        Self { public: true, hosts: Vec::new(), networks: Vec::new() }
    }
}

impl CopySources {
    /// Reads the settings: `public` or `none`, and a list of networks, addresses and names of hosts beside that.
    ///
    /// # Errors
    /// The text that is none of these.
    pub fn parse(which: &str, allowed: &[String]) -> Result<Self, String> {
        let public = match which {
            "public" => true,
            "none" => false,
            other => return Err(other.to_owned()),
        };
        let mut sources = Self { public, ..Self::default() };
        for text in allowed {
            let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            if let Ok(network) = text.parse::<IpNet>() {
                sources.networks.push(network);
            } else if let Ok(address) = text.parse::<IpAddr>() {
                sources.networks.push(IpNet::from(address));
            } else if !text.is_empty() && text.chars().all(name) {
                sources.hosts.push(text.to_ascii_lowercase());
            } else {
                return Err(text.clone());
            }
        }
        Ok(sources)
    }

    /// Whether `address`, which is one of `host`, may be connected to.
    pub fn allow(&self, host: &str, address: IpAddr) -> bool {
        // Written as IPv6 it is the same address.
        let address = address.to_canonical();
        (self.public && is_public(address))
            || self.hosts.contains(&host.to_ascii_lowercase())
            || self.networks.iter().any(|network| network.contains(&address))
    }
}

/// Whether an address is one of the Internet: not of this machine, of a local network, nor with a special meaning
/// (the registries of special purpose addresses, RFC 6890 and later).
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        (0 | 10 | 127, ..) => true,
        (100, 64..=127, _) => true,
        (169, 254, _) => true,
        (172, 16..=31, _) => true,
        (192, 0, 0 | 2) => true,
        (192, 88, 99) => true,
        (192, 168, _) => true,
        (198, 18..=19, _) => true,
        (198, 51, 100) => true,
        (203, 0, 113) => true,
        // Multicast, reserved, broadcast.
        (224.., ..) => true,
        _ => false,
    };
    // Azure's own virtual address answers machines about themselves.
    !special && address != Ipv4Addr::new(168, 63, 129, 16)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, ..] = address.segments();
    // All global unicast addresses begin so.
    if a & 0xe000 != 0x2000 {
        return false;
    }
    match (a, b, c, d) {
        // Protocol assignments with Teredo, documentation, tunnels that carry an IPv4 address.
        (0x2001, 0..=0x01ff, ..) | (0x2001, 0x0db8, ..) | (0x2002, ..) => false,
        (0x3fff, 0..=0x0fff, ..) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn public_addresses() {
        for public in
            ["8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.0.1", "192.0.1.1", "2606:4700::1", "::ffff:8.8.8.8"]
        {
            assert!(is_public(address(public)), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.1.2.3",
            "127.0.0.1",
            "127.8.8.8",
            "100.64.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.9.9",
            "192.168.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "fec0::1",
        ] {
            assert!(!is_public(address(special)), "{special}");
        }
    }

    #[test]
    fn operators_decide() {
        let listed = ["10.0.0.0/8", "192.168.7.7", "Files.Example.org", "fd00::/8"].map(str::to_owned);
        let public = CopySources::parse("public", &listed).unwrap();
        let none = CopySources::parse("none", &listed).unwrap();
        for (host, at, by_public, by_none) in [
            ("example.org", "8.8.8.8", true, false),
            ("example.org", "127.0.0.1", false, false),
            ("example.org", "10.9.9.9", true, true),
            ("example.org", "::ffff:10.9.9.9", true, true),
            ("example.org", "192.168.7.7", true, true),
            ("example.org", "192.168.7.8", false, false),
            ("FILES.example.org", "127.0.0.1", true, true),
            ("evil.files.example.org", "127.0.0.1", false, false),
            ("example.org", "fd12::1", true, true),
        ] {
            assert_eq!(public.allow(host, address(at)), by_public, "{host} {at}");
            assert_eq!(none.allow(host, address(at)), by_none, "{host} {at}");
        }
        for (which, listed) in
            [("all", ""), ("", ""), ("public", "10.0.0.0/99"), ("public", "http://a"), ("public", "")]
        {
            let listed = if which == "public" { vec![listed.to_owned()] } else { Vec::new() };
            assert!(CopySources::parse(which, &listed).is_err(), "{which} {listed:?}");
        }
    }
}
