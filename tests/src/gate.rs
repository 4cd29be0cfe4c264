//! A way to a server that can be shut: what is on its way then neither arrives nor fails.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards connections; ends when dropped.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Gate {
    /// A gate that is open.
    ///
    /// # Errors
    /// Where no port is to be had.
    pub async fn open(to: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (open, state) = watch::channel(true);
        let task = tokio::spawn(async move {
            // A listener that fails takes no more connections, and the test sees that.
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(forward(near, to, state.clone()));
            }
        });
        Ok(Self { address, open, task })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens it, or shuts it.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(near: TcpStream, to: SocketAddr, open: watch::Receiver<bool>) {
    let Ok(far) = TcpStream::connect(to).await else {
        return;
    };
    let (near, far) = (near.into_split(), far.into_split());
    // Either side that ends takes the other with it.
    tokio::select! {
        () = pass(near.0, far.1, open.clone()) => {}
        () = pass(far.0, near.1, open) => {}
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut open: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else {
            return;
        };
        if open.wait_for(|open| *open).await.is_err() {
            return;
        }
        if to
            .write_all(bytes.get(..count).unwrap_or_default())
            .await
            .is_err()
        {
            return;
        }
    }
}
