//! A network of our own: each process in a namespace, all joined by one bridge.
//!
//! The harness reaches them over the bridge's own address. Packets are dropped where they arrive,
//! by a chain of the receiver's namespace, so that one direction can be cut without the other.
//! Everything is removed when it is dropped; names carry the process id of who made them.

use std::net::{IpAddr, Ipv4Addr};

use crate::abilities::run;

/// Namespaces, veth pairs and a bridge.
#[derive(Debug)]
pub struct Network {
    bridge: String,
    subnet: (u8, u8),
    spaces: usize,
}

impl Network {
    /// Makes a bridge and so many namespaces, numbered from 0.
    ///
    /// # Errors
    /// Where the system refuses any of it.
    pub fn create(spaces: usize) -> anyhow::Result<Self> {
        anyhow::ensure!(spaces < 250, "{spaces} namespaces do not fit into one subnet");
        let id = std::process::id();
        let subnet = (
            u8::try_from(200 + id % 50).unwrap_or(200),
            u8::try_from(id / 50 % 250).unwrap_or(0),
        );
        let mut network = Self {
            bridge: format!("fb{id}"),
            subnet,
            spaces: 0,
        };
        run("ip", &["link", "add", &network.bridge, "type", "bridge"])?;
        let own = format!("10.{}.{}.1/24", subnet.0, subnet.1);
        run("ip", &["addr", "add", &own, "dev", &network.bridge])?;
        run("ip", &["link", "set", &network.bridge, "up"])?;
        for number in 0..spaces {
            // Counted first: what is half made must be removed too.
            network.spaces = number + 1;
            network.add(number)?;
        }
        Ok(network)
    }

    fn add(&self, number: usize) -> anyhow::Result<()> {
        let space = self.space(number);
        let (outside, inside) = (self.outside(number), format!("{}i{number}", self.bridge));
        run("ip", &["netns", "add", &space])?;
        run(
            "ip",
            &["link", "add", &outside, "type", "veth", "peer", "name", &inside],
        )?;
        run("ip", &["link", "set", &inside, "netns", &space])?;
        run("ip", &["link", "set", &outside, "master", &self.bridge, "up"])?;
        let address = format!("{}/24", self.address(number));
        run("ip", &["-n", &space, "addr", "add", &address, "dev", &inside])?;
        run("ip", &["-n", &space, "link", "set", &inside, "up"])?;
        run("ip", &["-n", &space, "link", "set", "lo", "up"])?;
        self.nft(number, "add table inet faults")?;
        self.nft(
            number,
            "add chain inet faults arriving { type filter hook input priority 0; }",
        )
    }

    fn nft(&self, number: usize, rule: &str) -> anyhow::Result<()> {
        run("ip", &["netns", "exec", &self.space(number), "nft", rule])
    }

    fn outside(&self, number: usize) -> String {
        format!("{}o{number}", self.bridge)
    }

    /// Name of a namespace.
    #[must_use]
    pub fn space(&self, number: usize) -> String {
        format!("{}-{number}", self.bridge)
    }

    /// Address of whoever is in a namespace.
    #[must_use]
    pub fn address(&self, number: usize) -> IpAddr {
        let host = u8::try_from(number + 2).unwrap_or(u8::MAX);
        Ipv4Addr::new(10, self.subnet.0, self.subnet.1, host).into()
    }

    /// Drops what one namespace sends to another, but not what comes back.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn cut(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let address = self.address(from);
        self.nft(
            to,
            &format!("add rule inet faults arriving ip saddr {address} drop"),
        )
    }

    /// Drops so many percent of what arrives in a namespace, below 100.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn lose(&self, number: usize, percent: u8) -> anyhow::Result<()> {
        let own = self.address(number);
        let rule = format!(
            "add rule inet faults arriving ip saddr != {own} numgen random mod 100 < {} drop",
            percent.min(99)
        );
        self.nft(number, &rule)
    }

    /// Cuts a namespace off from all others, in both directions.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn isolate(&self, number: usize) -> anyhow::Result<()> {
        run("ip", &["link", "set", &self.outside(number), "down"])
    }

    /// Takes back all that was done to a namespace.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn heal(&self, number: usize) -> anyhow::Result<()> {
        run("ip", &["link", "set", &self.outside(number), "up"])?;
        self.nft(number, "flush chain inet faults arriving")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What is left behind by a refusal carries our process id and does no harm.
        for number in 0..self.spaces {
            let _ = run("ip", &["link", "del", &self.outside(number)]);
            let _ = run("ip", &["netns", "del", &self.space(number)]);
        }
        let _ = run("ip", &["link", "del", &self.bridge]);
    }
}
