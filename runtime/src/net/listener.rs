//! Taking connections at an address of any kind.
//!
//! A Unix socket file is removed when its listener is dropped. A file that a dead process left
//! behind is replaced, one that a live process listens on is not: each listener holds a lock on
//! `<path>.lock` for as long as it lives, so two processes that start at once cannot both take
//! the place of a third. The lock file itself stays, empty; removing it would reopen that race.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::Stream;
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::connection::Connection;
use super::mem::{MemListener, MemNetwork};
use super::{Addr, failure};

/// How long [`Listener::incoming`] waits after a failed accept; long enough not to spin while the
/// process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound address.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
    Mem(MemListener),
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    _lock: File,
}

impl Listener {
    pub(super) async fn bind(addr: &Addr, mem: &MemNetwork) -> io::Result<Self> {
        let bound = match addr {
            Addr::Tcp { host, port } => TcpListener::bind((host.as_str(), *port)).await.map(Kind::Tcp),
            Addr::Unix(path) => bind_unix(path).await,
            Addr::Mem(name) => return mem.bind(name).map(|listener| Self(Kind::Mem(listener))),
        };
        bound.map(Self).map_err(|error| failure("bind", addr, error))
    }

    /// The address that peers on this machine can connect to, with the port that the system chose.
    pub fn local_addr(&self) -> io::Result<Addr> {
        match &self.0 {
            Kind::Tcp(listener) => listener.local_addr().map(Addr::from),
            Kind::Unix(_, file) => Ok(Addr::Unix(file.path.clone())),
            Kind::Mem(listener) => Ok(Addr::mem(listener.name())),
        }
    }

    /// The next connection. A peer that left before it was accepted is passed over; any other
    /// error (such as no file descriptor left) is returned, and the caller should pause before it
    /// calls again.
    ///
    /// Cancel safety: no connection is lost when the future is dropped.
    pub async fn accept(&mut self) -> io::Result<Connection> {
        loop {
            let accepted = match &mut self.0 {
                Kind::Tcp(listener) => match listener.accept().await {
                    Ok((stream, _)) => stream.set_nodelay(true).map(|()| Connection::Tcp(stream)),
                    Err(error) => Err(error),
                },
                Kind::Unix(listener, _) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| Connection::Unix(stream)),
                Kind::Mem(listener) => return listener.accept().await,
            };
            match accepted {
                Err(error) if is_about_the_peer(&error) => {}
                other => return other,
            }
        }
    }

    /// Connections as a stream, for a server that takes one. It never ends: a failed accept
    /// is logged and tried again after a pause.
    pub fn incoming(self) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
        futures_util::stream::unfold(self, |mut listener| async move {
            loop {
                match listener.accept().await {
                    Ok(connection) => return Some((Ok(connection), listener)),
                    Err(error) => {
                        tracing::warn!(%error, addr = ?listener.local_addr(), "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    }
}

fn is_about_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidInput, NotConnected};
    // macOS and the BSDs answer InvalidInput to set_nodelay on a connection that is gone.
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | InvalidInput | NotConnected
    )
}

async fn bind_unix(path: &Path) -> io::Result<Kind> {
    let lock = lock_beside(path)?;
    remove_stale(path).await?;
    let listener = UnixListener::bind(path)?;
    Ok(Kind::Unix(
        listener,
        SocketFile {
            path: path.to_owned(),
            _lock: lock,
        },
    ))
}

fn lock_beside(path: &Path) -> io::Result<File> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(lock_path)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another listener holds the lock file",
        )),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes a socket file that nobody listens on. A live listener that does not know our lock file
/// is recognised by its answer, and a file that is no socket is left alone.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let message = "a file that is no socket is in the way";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The lock is still held here, so the file is ours. It may be gone with its folder.
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "socket file stays behind");
        }
    }
}
