//! A proxy in front of a real S3 server that does to a request what a test asks for.
//!
//! One request per connection; the request's bytes go on as they came, so that signatures stay right.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Pass,
    /// It is refused with a status and S3's code.
    Refuse(u16, &'static str),
    /// It waits first.
    Slow(Duration),
    /// It is never answered.
    Hang,
    /// It is done, and the answer is lost.
    AnswerLost,
    /// It is done, and answered with 500.
    ErrorAfter,
    /// The last byte of the answer's body is another.
    Flip,
    /// The answer ends before its last byte.
    Cut,
}

/// Method and path with query.
pub type Rule = Box<dyn FnMut(&str, &str) -> Fault + Send>;

/// A running proxy; ends when dropped.
pub struct Proxy {
    address: SocketAddr,
    rule: Arc<Mutex<Rule>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(|_, _| Fault::Pass)));
        let rules = Arc::clone(&rule);
        let task = tokio::spawn(async move {
            // Dropped with this task: connections do not outlive the proxy.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let rules = Arc::clone(&rules);
                connections.spawn(async move { serve(stream, upstream, &rules).await.ok() });
            }
        });
        Self { address, rule, task }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on.
    pub fn rule(&self, rule: impl FnMut(&str, &str) -> Fault + Send + 'static) {
        *self.rule.lock() = Box::new(rule);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, upstream: u16, rules: &Mutex<Rule>) -> std::io::Result<()> {
    let (head, body) = read_message(&mut client).await?;
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let fault = (rules.lock())(method, path);
    match fault {
        Fault::Refuse(status, code) => {
            let xml = format!("<Error><Code>{code}</Code><Message>said the proxy</Message></Error>");
            return client.write_all(&response(status, xml.as_bytes())).await;
        }
        Fault::Slow(time) => tokio::time::sleep(time).await,
        Fault::Hang => std::future::pending().await,
        _ => {}
    }
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).await?;
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    server.write_all(head.as_bytes()).await?;
    server.write_all(&body).await?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).await?;
    match fault {
        Fault::AnswerLost => return Ok(()),
        Fault::ErrorAfter => answer = response(500, b"<Error><Code>InternalError</Code></Error>"),
        Fault::Flip => {
            if let Some(last) = answer.last_mut() {
                *last ^= 1;
            }
        }
        Fault::Cut => {
            answer.pop();
        }
        _ => {}
    }
    client.write_all(&answer).await
}

/// Reads a request: its head with the empty line, and its body.
async fn read_message(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let body = bytes.split_off(end);
    let head = String::from_utf8(bytes).unwrap();
    let len = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap());
    let mut body = body;
    while body.len() < len {
        if stream.read_buf(&mut body).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((head, body))
}

fn response(status: u16, body: &[u8]) -> Vec<u8> {
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status} Said\r\nContent-Type: application/xml\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
