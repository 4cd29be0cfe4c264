//! Where a listener is: one text form for TCP, Unix sockets and in-process pipes.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};

/// The address of a listener: `tcp://host:port`, `unix:///path` or `mem://name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Addr {
    /// A TCP host (name or IP address, IPv6 without its brackets) and port; port 0 asks the
    /// system for a free one when bound.
    Tcp {
        /// Host name or IP address.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix stream socket at an absolute path.
    Unix(PathBuf),
    /// A name within one [`MemNetwork`](super::MemNetwork).
    Mem(String),
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address: {reason}")]
pub struct ParseAddrError {
    text: String,
    reason: &'static str,
}

impl Addr {
    /// A TCP address.
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self::Tcp {
            host: host.into(),
            port,
        }
    }

    /// A Unix socket address.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::Unix(path.into())
    }

    /// An in-process address.
    pub fn mem(name: impl Into<String>) -> Self {
        Self::Mem(name.into())
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        Self::Tcp {
            host: addr.ip().to_string(),
            port: addr.port(),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Mem(name) => write!(f, "mem://{name}"),
        }
    }
}

impl FromStr for Addr {
    type Err = ParseAddrError;

    fn from_str(text: &str) -> Result<Self, ParseAddrError> {
        let refuse = |reason| ParseAddrError {
            text: text.to_owned(),
            reason,
        };
        match text.split_once("://") {
            Some(("tcp", rest)) => parse_tcp(rest).map_err(refuse),
            Some(("unix", path)) if path.starts_with('/') && !path.ends_with('/') => {
                Ok(Self::Unix(path.into()))
            }
            Some(("unix", _)) => Err(refuse("a unix address needs the absolute path of a file")),
            Some(("mem", name)) if is_mem_name(name) => Ok(Self::Mem(name.to_owned())),
            Some(("mem", _)) => Err(refuse(
                "a mem name is made of letters, digits, '-', '_', '.' and '/'",
            )),
            _ => Err(refuse("expected tcp://host:port, unix:///path or mem://name")),
        }
    }
}

fn parse_tcp(rest: &str) -> Result<Addr, &'static str> {
    let (host, port) = rest.rsplit_once(':').ok_or("the port is missing")?;
    let port = port.parse().map_err(|_| "the port is not a number up to 65535")?;
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or("the closing bracket is missing")?;
        inner
            .parse::<Ipv6Addr>()
            .map_err(|_| "only an IPv6 address goes in brackets")?;
        return Ok(Addr::tcp(inner, port));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if host.is_empty() {
        Err("the host is missing")
    } else if host.contains(':') {
        Err("an IPv6 address needs brackets")
    } else if host.chars().all(plain) {
        Ok(Addr::tcp(host, port))
    } else {
        Err("the host has a character that no host name has")
    }
}

fn is_mem_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    !name.is_empty() && name.chars().all(plain)
}

impl Serialize for Addr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Addr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;

    #[test]
    fn every_kind_parses_and_prints_back() {
        for (text, addr) in [
            ("tcp://127.0.0.1:7450", Addr::tcp("127.0.0.1", 7450)),
            ("tcp://broker-1.example:0", Addr::tcp("broker-1.example", 0)),
            ("tcp://[::1]:80", Addr::tcp("::1", 80)),
            ("unix:///run/node.sock", Addr::unix("/run/node.sock")),
            ("mem://node-1/data", Addr::mem("node-1/data")),
        ] {
            assert_eq!(text.parse::<Addr>().unwrap(), addr);
            assert_eq!(addr.to_string(), text);
        }
    }

    #[test]
    fn malformed_addresses_are_refused_with_the_text_and_the_reason() {
        for text in [
            "",
            "127.0.0.1:80",
            "http://a:1",
            "tcp://",
            "tcp://a",
            "tcp://:1",
            "tcp://a:65536",
            "tcp://a:-1",
            "tcp://::1:80",
            "tcp://[::1:80",
            "tcp://[a]:80",
            "tcp://a/b:1",
            "tcp://u@a:1",
            "unix://relative",
            "unix:///",
            "mem://",
            "mem://a b",
        ] {
            let error = text.parse::<Addr>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is no address: ")), "{error}");
        }
    }
}
