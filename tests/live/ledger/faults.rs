//! Postgres taken away at the worst moments: a definite no gives the seat back, an unknown outcome never does.
//!
//! A proxy stands between the service and the server. It reads the server's words, and when it hears the one it is
//! armed for (`BEGIN`, `COMMIT`) it swallows them and cuts every connection: to the client a COMMIT whose answer was
//! lost looks exactly like a server that died before it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sluice::coupon::{
    db::DbConfig,
    error::{Dependency, Outcome, Refusal},
    gate::Gate,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::{
    ledger_contract::{Fixture, context, order, told, user},
    own_database,
};

/// The proxy's switches.
struct Proxy {
    port: u16,
    /// Cut when the server says this.
    armed: Mutex<Option<&'static str>>,
    /// Let nobody in.
    closed: AtomicBool,
    cut: Notify,
    cuts: AtomicUsize,
}

impl Proxy {
    async fn start(server: String) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Arc::new(Self {
            port: listener.local_addr().unwrap().port(),
            armed: Mutex::new(None),
            closed: AtomicBool::new(false),
            cut: Notify::new(),
            cuts: AtomicUsize::new(0),
        });
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !accepting.closed.load(Ordering::SeqCst) {
                    tokio::spawn(accepting.clone().carry(client, server.clone()));
                }
            }
        });
        proxy
    }

    async fn carry(self: Arc<Self>, client: TcpStream, server: String) {
        let Ok(server) = TcpStream::connect(server).await else { return };
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
        let down = async {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let read = from_server.read(&mut buffer).await?;
                if read == 0 {
                    return Ok::<(), std::io::Error>(());
                }
                if self.is_cut_by(&buffer[..read]) {
                    return Ok(());
                }
                to_client.write_all(&buffer[..read]).await?;
            }
        };
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

    /// Does the server say the armed word (a command's tag ends with a zero byte)?
    fn is_cut_by(&self, words: &[u8]) -> bool {
        let mut armed = self.armed.lock().unwrap();
        let Some(word) = *armed else { return false };
        let tag = [word.as_bytes(), b"\0"].concat();
        if !words.windows(tag.len()).any(|window| window == tag) {
            return false;
        }
        *armed = None;
        self.cuts.fetch_add(1, Ordering::SeqCst);
        self.cut.notify_waiters();
        true
    }

    fn arm(&self, word: &'static str) {
        *self.armed.lock().unwrap() = Some(word);
    }

    /// Cuts everybody off and lets nobody in, or lets them in again.
    fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Ordering::SeqCst);
        if closed {
            self.cut.notify_waiters();
        }
    }

    fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

async fn behind_a_proxy() -> Option<(Fixture, Arc<Proxy>)> {
    let url = own_database().await?;
    let (head, tail) = url.split_once('@').expect("the url names a user");
    let (server, database) = tail.split_once('/').expect("the url names a database");
    let proxy = Proxy::start(server.to_owned()).await;
    let url = format!("{head}@127.0.0.1:{}/{database}", proxy.port);
    let config = DbConfig {
        acquire_timeout: Duration::from_millis(500),
        statement_timeout: Duration::from_millis(500),
        ..DbConfig::default()
    };
    Some((Fixture::with_config(&url, config, None).await, proxy))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_lost_before_commit_is_a_definite_no_and_the_seat_comes_back() {
    let Some((f, proxy)) = behind_a_proxy().await else { return };
    let id = f.open(1).await;
    // An id block is taken by the first issue; let that be over, so that the cut meets the issue itself.
    f.ledger.next_user_coupon_id().await.unwrap();
    proxy.arm("BEGIN");
    let outcome = f.issue(id, 1).await;
    assert_eq!(proxy.cuts(), 1);
    // A transaction that could not begin is begun again on another connection: the caller need not know.
    assert_eq!(told(&outcome), "done");

    let id = f.open(1).await;
    proxy.set_closed(true);
    match f.issue(id, 1).await {
        Outcome::Refused(Refusal::SeatReleased { dependency: Dependency::Ledger }) => {}
        other => panic!("{other:?}"),
    }
    let stock = f.gate.stock(id).await.unwrap();
    assert_eq!((stock.admitted, stock.pending), (0, 0), "the seat is free again");
    proxy.set_closed(false);
    assert_eq!(told(&f.issue(id, 1).await), "done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_found_out_or_left_unknown_and_never_released() {
    let Some((f, proxy)) = behind_a_proxy().await else { return };
    let id = f.open(2).await;
    f.ledger.next_user_coupon_id().await.unwrap();

    // The ledger can be asked afterwards: it has the row, so the answer is yes.
    proxy.arm("COMMIT");
    assert_eq!(told(&f.issue(id, 1).await), "done");
    assert_eq!(proxy.cuts(), 1);

    // It cannot be asked: unknown, and the seat stays taken.
    proxy.arm("COMMIT");
    let watching = proxy.clone();
    let close = tokio::spawn(async move {
        while watching.cuts() < 2 {
            tokio::task::yield_now().await;
        }
        watching.set_closed(true);
    });
    let outcome = f.issue(id, 2).await;
    close.await.unwrap();
    if let Outcome::Refused(refusal) = &outcome {
        assert_eq!(*refusal, Refusal::OutcomeUnknown { dependency: Dependency::Ledger });
    } else {
        // The look at the ledger was quicker than the door.
        assert_eq!(told(&outcome), "done");
    }
    assert_eq!(f.gate.stock(id).await.unwrap().admitted, 2, "the seat is not given to anybody else");
    proxy.set_closed(false);
    // The same request again finds out.
    match f.issue(id, 2).await {
        Outcome::Refused(Refusal::AlreadyIssued { existing }) => assert_eq!(existing.user_id, user(2)),
        other => panic!("{other:?}"),
    }
    assert_eq!(told(&f.issue(id, 3).await), "CP005");
    assert_eq!(f.ints("select count(*) as n from user_coupons").await, [2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_without_an_answer_may_be_repeated() {
    let Some((f, proxy)) = behind_a_proxy().await else { return };
    let id = f.open(1).await;
    let row = f.issue(id, 1).await.done().unwrap().user_coupon_id;
    proxy.arm("COMMIT");
    let lost = f.service.use_coupon(row, order("o-1", 1_000), &context("r")).await;
    assert_eq!((told(&lost), proxy.cuts()), ("CP010", 1));
    let again = f.service.use_coupon(row, order("o-1", 1_000), &context("r")).await.done().unwrap();
    assert_eq!(again.discount_amount, Some(100));
    assert_eq!(f.ints("select count(*) as n from outbox where topic = 'coupon-used'").await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_meets_cut_connections_gets_every_seat_once() {
    let Some((f, proxy)) = behind_a_proxy().await else { return };
    let id = f.open(300).await;
    let f = Arc::new(f);
    let asking: Vec<_> = (1..=300)
        .map(|who| {
            let f = f.clone();
            tokio::spawn(async move { (who, f.issue(id, who).await) })
        })
        .collect();
    let cutting = {
        let (proxy, f) = (proxy.clone(), f.clone());
        tokio::spawn(async move {
            // Cut a commit whenever another piece of the crowd got through.
            for pass in 1..=5 {
                let before = proxy.cuts();
                proxy.arm(if pass % 2 == 0 { "BEGIN" } else { "COMMIT" });
                let deadline = Instant::now() + Duration::from_millis(300);
                while proxy.cuts() == before && Instant::now() < deadline {
                    tokio::task::yield_now().await;
                }
            }
            *proxy.armed.lock().unwrap() = None;
            drop(f);
        })
    };
    let mut answers = Vec::new();
    for task in asking {
        answers.push(task.await.unwrap());
    }
    cutting.await.unwrap();
    // A definite no has left nothing behind.
    for (who, outcome) in &answers {
        let held = f.ledger.user_coupon_of(id, user(*who), f.now()).await.unwrap();
        match outcome {
            Outcome::Done(row) => assert_eq!(held.unwrap().shown.user_coupon_id, row.user_coupon_id),
            Outcome::Refused(Refusal::SeatReleased { .. }) => assert_eq!(held, None, "{who} was told no"),
            _ => {}
        }
    }
    // Whoever was refused asks again, as the answers say is safe.
    for (who, outcome) in answers {
        match outcome {
            Outcome::Done(_) | Outcome::Refused(Refusal::AlreadyIssued { .. }) => {}
            Outcome::Refused(
                Refusal::SeatReleased { .. } | Refusal::OutcomeUnknown { .. } | Refusal::Overloaded { .. },
            ) => {
                let again = f.issue(id, who).await;
                assert!(matches!(told(&again), "done" | "CP007" | "CP010"), "{who}: {again:?}");
            }
            other => panic!("{who}: {other:?}"),
        }
    }
    assert!(proxy.cuts() >= 1);
    let rows = f.ints("select count(*) as n from user_coupons").await[0];
    assert_eq!(f.ints("select count(distinct slot_no) as n from user_coupons").await, [rows]);
    assert_eq!(f.ints("select count(*) as n from coupon_history").await, [rows]);
    assert_eq!(f.ints("select count(*) as n from outbox").await, [rows]);
    let admitted = f.gate.stock(id).await.unwrap().admitted;
    assert!(rows <= admitted && admitted <= 300, "rows {rows}, gate {admitted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_pool_refuses_within_its_time_limit() {
    let Some(url) = own_database().await else { return };
    let config =
        DbConfig { connections_max: 1, acquire_timeout: Duration::from_millis(200), ..DbConfig::default() };
    let f = Fixture::with_config(&url, config, None).await;
    let id = f.open(1).await;
    f.ledger.next_user_coupon_id().await.unwrap();
    f.service.coupon(id).await.unwrap();
    let held = f.ledger.db().begin().await.unwrap();
    let asked = Instant::now();
    assert_eq!(told(&f.issue(id, 1).await), "CP009");
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    held.rollback().await;
    assert_eq!(told(&f.issue(id, 1).await), "done");
}
