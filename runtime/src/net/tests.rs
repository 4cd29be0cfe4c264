#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::io::IoSlice;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::*;

async fn pair(network: &SystemConnector, addr: &Addr) -> (Connection, Connection, Listener) {
    let mut listener = network.bind(addr).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(network.connect(&addr), listener.accept());
    (client.unwrap(), server.unwrap(), listener)
}

fn every_kind(folder: &tempfile::TempDir) -> [Addr; 3] {
    [
        Addr::tcp("127.0.0.1", 0),
        Addr::unix(folder.path().join("a.sock")),
        Addr::mem("a"),
    ]
}

#[tokio::test]
async fn every_kind_carries_vectored_writes_both_ways_and_ends_when_the_writer_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let network = SystemConnector::default();
    for addr in every_kind(&folder) {
        let (client, server, _listener) = pair(&network, &addr).await;
        assert!(client.is_write_vectored(), "{addr}");
        let (mut client_reader, mut client_writer) = client.into_split();
        let (mut server_reader, mut server_writer) = server.into_split();
        assert!(client_writer.is_write_vectored(), "{addr}");

        let slices = [
            IoSlice::new(b"head"),
            IoSlice::new(b"er"),
            IoSlice::new(b"payload"),
        ];
        assert_eq!(client_writer.write_vectored(&slices).await.unwrap(), 13, "{addr}");
        drop(client_writer);
        let mut got = Vec::new();
        server_reader.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"headerpayload", "{addr}");

        server_writer.write_all(b"answer").await.unwrap();
        drop((server_writer, server_reader));
        got.clear();
        client_reader.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer", "{addr}");
    }
}

#[tokio::test]
async fn a_whole_connection_is_a_stream_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let network = SystemConnector::default();
    for addr in every_kind(&folder) {
        let (mut client, mut server, _listener) = pair(&network, &addr).await;
        client.write_all(b"ping").await.unwrap();
        client.flush().await.unwrap();
        let mut four = [0; 4];
        server.read_exact(&mut four).await.unwrap();
        server.write_all(b"pong").await.unwrap();
        client.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"pong");
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut four).await.unwrap(), 0, "{addr}");
    }
}

#[tokio::test]
async fn port_zero_is_resolved_and_both_ends_have_nodelay() {
    let network = SystemConnector::default();
    let (client, server, listener) = pair(&network, &Addr::tcp("127.0.0.1", 0)).await;
    let Addr::Tcp { host, port } = listener.local_addr().unwrap() else {
        panic!("no tcp address")
    };
    assert_eq!(host, "127.0.0.1");
    assert_ne!(port, 0);
    assert!(server.peer().socket_addr.is_some());
    for end in [client, server] {
        let Connection::Tcp(stream) = end else {
            panic!("no tcp stream")
        };
        assert!(stream.nodelay().unwrap());
    }
}

#[tokio::test]
async fn connecting_to_nobody_is_refused_with_the_address() {
    let folder = tempfile::tempdir().unwrap();
    let network = SystemConnector::default();
    let free_port = {
        let listener = network.bind(&Addr::tcp("127.0.0.1", 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    for addr in [
        free_port,
        Addr::unix(folder.path().join("none.sock")),
        Addr::mem("none"),
    ] {
        let error = network.connect(&addr).await.unwrap_err();
        let expected = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
        assert!(expected.contains(&error.kind()), "{error:?}");
        assert!(
            error.to_string().starts_with(&format!("connect to {addr}: ")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_unix_socket_file_is_removed_when_its_listener_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let network = SystemConnector::default();
    for _ in 0..2 {
        let listener = network.bind(&Addr::unix(&path)).await.unwrap();
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn a_stale_socket_file_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    // The standard library leaves the file behind, as a killed process does.
    drop(StdUnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let network = SystemConnector::default();
    let (_client, _server, _listener) = pair(&network, &Addr::unix(&path)).await;
}

#[tokio::test]
async fn a_live_socket_file_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let addr = Addr::unix(&path);
    let network = SystemConnector::default();

    let ours = network.bind(&addr).await.unwrap();
    let error = network.bind(&addr).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    assert!(network.connect(&addr).await.is_ok());
    drop(ours);

    let foreign = StdUnixListener::bind(&path).unwrap();
    assert_eq!(
        network.bind(&addr).await.unwrap_err().kind(),
        io::ErrorKind::AddrInUse
    );
    assert!(path.exists());
    drop(foreign);
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_never_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, b"data").unwrap();
    let error = SystemConnector::default()
        .bind(&Addr::unix(&path))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
}

#[tokio::test]
async fn two_mem_networks_do_not_see_each_other() {
    let (one, two) = (SystemConnector::default(), SystemConnector::default());
    let addr = Addr::mem("node");
    let _first = one.bind(&addr).await.unwrap();
    let _second = two.bind(&addr).await.unwrap();
    assert_eq!(
        one.bind(&addr).await.unwrap_err().kind(),
        io::ErrorKind::AddrInUse
    );
    let elsewhere = SystemConnector::default().connect(&addr).await.unwrap_err();
    assert_eq!(elsewhere.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_mem_name_is_free_again_when_its_listener_is_dropped() {
    let mem = MemNetwork::new();
    let network = SystemConnector::new(mem.clone());
    let addr = Addr::mem("node");
    drop(network.bind(&addr).await.unwrap());
    assert!(network.connect(&addr).await.is_err());
    let (_client, server, _listener) = pair(&network, &addr).await;
    assert_eq!(server.peer().name, "mem://node");
}

#[tokio::test]
async fn severing_a_name_resets_its_connections_and_leaves_the_listener() {
    let mem = MemNetwork::new();
    let network = SystemConnector::new(mem.clone());
    let (mut client, mut server, mut listener) = pair(&network, &Addr::mem("node")).await;
    client.write_all(b"lost").await.unwrap();
    assert_eq!(mem.sever("node"), 1);
    assert_eq!(mem.sever("node"), 0);
    assert_eq!(
        client.read_u8().await.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    assert_eq!(
        server.read_u8().await.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    let addr = Addr::mem("node");
    let (again, accepted) = tokio::join!(mem.connect(&addr), listener.accept());
    again.unwrap().write_all(b"x").await.unwrap();
    assert_eq!(accepted.unwrap().read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn incoming_yields_each_connection() {
    let network: SystemConnector = SystemConnector::default();
    let listener = network.bind(&Addr::mem("node")).await.unwrap();
    let mut incoming = Box::pin(listener.incoming());
    let connector: Arc<dyn Connector> = Arc::new(network);
    for _ in 0..3 {
        let mut client = connector.connect(&Addr::mem("node")).await.unwrap();
        let mut server = incoming.next().await.unwrap().unwrap();
        client.write_u8(9).await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), 9);
    }
}
