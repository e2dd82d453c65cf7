//! A TCP proxy between the service and a server that a test cuts, closes, stops or leads elsewhere.
//!
//! It reads the server's words, and when it hears the one it is armed for (`BEGIN`, `COMMIT`) it swallows them and cuts
//! every connection: to the client a COMMIT whose answer was lost looks exactly like a server that died before it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, watch},
};

/// A proxy and its switches.
pub struct Proxy {
    pub port: u16,
    /// Where new connections are carried to.
    server: Mutex<String>,
    /// Cut when the server says this, and perhaps let nobody in from then on.
    armed: Mutex<Option<(&'static str, bool)>>,
    /// Let nobody in.
    closed: AtomicBool,
    /// Carry nothing and keep every connection: a server that does not answer any more.
    stopped: watch::Sender<bool>,
    cut: Notify,
    cuts: AtomicUsize,
}

impl Proxy {
    /// In front of the server of `postgres://user@host:port/database` or `redis://host:port`; with the address that leads
    /// through it.
    pub async fn in_front_of(url: &str) -> (Arc<Self>, String) {
        let (scheme, rest) = url.split_once("://").expect("an address has a scheme");
        let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(user, rest)| (user, rest));
        let (server, path) = rest.split_once('/').map_or((rest, ""), |(server, path)| (server, path));
        let proxy = Self::start(server.to_owned()).await;
        let at = if user.is_empty() { String::new() } else { format!("{user}@") };
        let slash = if path.is_empty() { String::new() } else { format!("/{path}") };
        let url = format!("{scheme}://{at}127.0.0.1:{}{slash}", proxy.port);
        (proxy, url)
    }

    /// On this port of the machine, in front of that one.
    pub async fn between(port: u16, server: u16) -> Arc<Self> {
        Self::on(port, format!("127.0.0.1:{server}")).await
    }

    async fn start(server: String) -> Arc<Self> {
        Self::on(0, server).await
    }

    async fn on(port: u16, server: String) -> Arc<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let proxy = Arc::new(Self {
            port: listener.local_addr().unwrap().port(),
            server: Mutex::new(server),
            armed: Mutex::new(None),
            closed: AtomicBool::new(false),
            stopped: watch::Sender::new(false),
            cut: Notify::new(),
            cuts: AtomicUsize::new(0),
        });
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !accepting.closed.load(Ordering::SeqCst) {
                    let server = accepting.server.lock().unwrap().clone();
                    tokio::spawn(accepting.clone().carry(client, server));
                }
            }
        });
        proxy
    }

    async fn carry(self: Arc<Self>, client: TcpStream, server: String) {
        let Ok(server) = TcpStream::connect(server).await else { return };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let up = self.pump(from_client, to_server, |_| false);
        let down = self.pump(from_server, to_client, |words| self.is_cut_by(words));
        let cut = async {
            self.cut.notified().await;
            Ok::<(), std::io::Error>(())
        };
        tokio::select! {
            _ = up => {}
            _ = down => {}
            _ = cut => {}
        }
    }

    async fn pump(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        cuts: impl Fn(&[u8]) -> bool,
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        let mut stopped = self.stopped.subscribe();
        loop {
            let read = from.read(&mut buffer).await?;
            // An error would mean that the proxy is gone.
            let _ = stopped.wait_for(|stopped| !stopped).await;
            if read == 0 || cuts(&buffer[..read]) {
                return Ok(());
            }
            to.write_all(&buffer[..read]).await?;
        }
    }

    /// Does the server say the armed word (a command's tag ends with a zero byte)?
    fn is_cut_by(&self, words: &[u8]) -> bool {
        let mut armed = self.armed.lock().unwrap();
        let Some((word, closes)) = *armed else { return false };
        let tag = [word.as_bytes(), b"\0"].concat();
        if !words.windows(tag.len()).any(|window| window == tag) {
            return false;
        }
        *armed = None;
        if closes {
            self.closed.store(true, Ordering::SeqCst);
        }
        self.cuts.fetch_add(1, Ordering::SeqCst);
        self.cut.notify_waiters();
        true
    }

    /// Cuts everybody when the server says this the next time.
    pub fn arm(&self, word: &'static str) {
        *self.armed.lock().unwrap() = Some((word, false));
    }

    /// Cuts everybody when the server says this the next time, and lets nobody in from that moment on.
    pub fn arm_to_close(&self, word: &'static str) {
        *self.armed.lock().unwrap() = Some((word, true));
    }

    /// Cuts everybody off and lets nobody in, or lets them in again.
    pub fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Ordering::SeqCst);
        if closed {
            self.cut.notify_waiters();
        }
    }

    /// Lets nothing through any more, or what was held back and everything after it.
    pub fn set_stopped(&self, stopped: bool) {
        self.stopped.send_replace(stopped);
    }

    /// Cuts everybody off; who comes again is carried to another server.
    pub fn lead_to(&self, server: String) {
        *self.server.lock().unwrap() = server;
        self.cut.notify_waiters();
    }

    /// How often it cut because of an armed word.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}
