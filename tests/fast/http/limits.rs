//! The server's bounds, over real sockets: in-flight requests, bodies and heads that do not come, and a stop that
//! finishes what was admitted.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde_json::json;
use sluice::http::serve;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use super::Api;

/// Longer than anything here takes, so that a hang fails instead of hanging.
const DEADLINE: Duration = Duration::from_secs(20);

struct Listening {
    api: Api,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<usize>,
}

async fn listen(keys: &[(&str, &str)]) -> Listening {
    let api = Api::with(keys).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let (router, config, metrics) =
        (api.router.clone(), api.state.ops.config.clone(), api.state.ops.metrics.clone());
    let served = tokio::spawn(serve(listener, router, config, metrics, async { drop(stopped.await) }));
    Listening { api, address, stop, served }
}

/// Sends a head that promises a body of so many bytes.
async fn begin(address: SocketAddr, body_bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        format!("POST /api/coupon/1/issue HTTP/1.1\r\nHost: x\r\nContent-Length: {body_bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Reads until the server closes, or until the whole answer with its Content-Length is there.
async fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer).await.unwrap_or(0);
            bytes.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if count == 0 || is_whole(&text) {
                return text;
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("an answer within the deadline")
}

fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.and_then(|length| length.parse::<usize>().ok()).is_some_and(|length| body.len() >= length)
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    answer(&mut stream).await
}

/// Polls until the API works on exactly so many requests.
async fn in_flight(api: &Api, count: i64) {
    let reached = async {
        while api.state.ops.metrics.in_flight.get() != count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, reached).await.expect("the requests are being worked on");
}

#[tokio::test]
async fn one_request_too_many_is_told_to_come_back_and_health_still_answers() {
    let server = listen(&[("http.max_in_flight", "2")]).await;
    let mut first = begin(server.address, 12).await;
    let second = begin(server.address, 12).await;
    in_flight(&server.api, 2).await;
    let refused = get(server.address, "/api/coupon/1").await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(refused.contains("retry-after: 1\r\n"), "{refused}");
    assert!(refused.contains("application/problem+json"), "{refused}");
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert!(get(server.address, path).await.starts_with("HTTP/1.1 200 "), "{path}");
    }
    // A place is free again when a request is answered, and when its client goes away.
    first.write_all(b"{\"userId\":1}").await.unwrap();
    assert!(answer(&mut first).await.starts_with("HTTP/1.1 404 "));
    drop(second);
    in_flight(&server.api, 0).await;
    assert!(get(server.address, "/api/coupon/1").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn a_body_or_head_that_does_not_come_is_not_waited_for() {
    let server = listen(&[("http.body_timeout_ms", "50"), ("http.header_timeout_ms", "50")]).await;
    let mut slow_body = begin(server.address, 12).await;
    assert!(answer(&mut slow_body).await.starts_with("HTTP/1.1 408 "));
    let mut slow_head = TcpStream::connect(server.address).await.unwrap();
    slow_head.write_all(b"GET /healthz HTTP/1.1\r\nHos").await.unwrap();
    let closed = answer(&mut slow_head).await;
    assert!(closed.is_empty() || closed.starts_with("HTTP/1.1 408 "), "{closed}");
}

#[tokio::test]
async fn a_body_larger_than_promised_sizes_is_cut_off() {
    let server = listen(&[("http.body_bytes_max", "256")]).await;
    let mut large = begin(server.address, 1_000_000_000).await;
    large.write_all(&[b' '; 300]).await.unwrap();
    assert!(answer(&mut large).await.starts_with("HTTP/1.1 413 "));
}

/// A ledger that does not answer keeps nobody longer than the bound; what was admitted is finished all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_longer_than_the_bound_and_what_was_begun_is_finished() {
    use sqlx::Connection;
    let api = Api::with(&[("http.request_timeout_ms", "300")]).await;
    let coupon = api.open_campaign(5).await;
    let path = format!("/api/coupon/{coupon}/issue");
    api.issue(coupon, 1).await;
    // Another process holds the ledger's only place to write.
    let file = api.directory.path().join("ledger.sqlite");
    let mut other = sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    sqlx::query("begin immediate").execute(&mut other).await.unwrap();
    let started = std::time::Instant::now();
    let late = api.post(&path, json!({ "userId": 2 })).await;
    assert!(started.elapsed() < Duration::from_secs(2), "it waited {:?}", started.elapsed());
    assert_eq!((late.status.as_u16(), &late.json["errorCode"]), (503, &json!("CP010")), "{late:?}");
    assert_eq!((late.header("retry-after"), &late.json["retryAfter"]), ("1", &json!(1)), "{late:?}");
    assert_eq!(late.json["dependency"], "ledger");
    sqlx::query("rollback").execute(&mut other).await.unwrap();
    // The caller is gone, the issue is not: the same request again finds what it came to.
    let repeated = async {
        loop {
            let again = api.post(&path, json!({ "userId": 2 })).await;
            if again.status != 503 {
                return again;
            }
        }
    };
    let again = tokio::time::timeout(DEADLINE, repeated).await.expect("an answer");
    assert_eq!((again.status.as_u16(), &again.json["errorCode"]), (409, &json!("CP007")), "{again:?}");
    assert_eq!(again.json["existing"]["userId"], 2);
}

/// As many issues wait for the ledger as may; one more is told at once to come back, and its seat is free again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issue_beyond_the_queue_is_refused_at_once() {
    use sqlx::Connection;
    let api = Arc::new(Api::with(&[("coupon.issue_queue_max", "1")]).await);
    let coupon = api.open_campaign(5).await;
    api.issue(coupon, 1).await;
    let file = api.directory.path().join("ledger.sqlite");
    let mut other = sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    sqlx::query("begin immediate").execute(&mut other).await.unwrap();
    // One is under way, one waits; of four at once at least two are too many.
    let asked: Vec<_> = (2..=5)
        .map(|user| {
            let (api, path) = (api.clone(), format!("/api/coupon/{coupon}/issue"));
            tokio::spawn(async move { api.post(&path, json!({ "userId": user })).await })
        })
        .collect();
    let refused = async {
        while api.state.ops.metrics.in_flight.get() > 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, refused).await.expect("the others are not kept waiting");
    sqlx::query("rollback").execute(&mut other).await.unwrap();
    let answers = futures::future::join_all(asked).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap()).collect();
    let count = |status: u16| answers.iter().filter(|answer| answer.status.as_u16() == status).count();
    assert!(count(429) >= 2, "{answers:?}");
    assert_eq!(count(201) + count(429), 4, "{answers:?}");
    let refused = answers.iter().find(|answer| answer.status.as_u16() == 429).unwrap();
    assert_eq!(refused.header("retry-after"), "1");
    let stock = api.get(&format!("/api/coupon/{coupon}/stock")).await;
    assert_eq!(stock.json["admitted"], stock.json["issued"], "no seat stays taken: {stock:?}");
}

#[tokio::test]
async fn a_stop_finishes_what_was_admitted_and_takes_nothing_new() {
    let server = listen(&[]).await;
    let mut admitted = begin(server.address, 12).await;
    // An idle kept-alive connection does not hold the stop up.
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    answer(&mut idle).await;
    in_flight(&server.api, 1).await;
    server.stop.send(()).unwrap();
    let refused = async {
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, refused).await.expect("the listener closes");
    admitted.write_all(b"{\"userId\":1}").await.unwrap();
    let finished = answer(&mut admitted).await;
    assert!(finished.starts_with("HTTP/1.1 404 "), "{finished}");
    let cut_off = tokio::time::timeout(DEADLINE, server.served).await.expect("the server ends").unwrap();
    assert_eq!(cut_off, 0);
}

#[tokio::test]
async fn a_request_longer_than_the_grace_is_cut_off_and_counted() {
    let server = listen(&[("http.shutdown_grace_ms", "30")]).await;
    let _stuck = begin(server.address, 12).await;
    in_flight(&server.api, 1).await;
    server.stop.send(()).unwrap();
    let cut_off = tokio::time::timeout(DEADLINE, server.served).await.expect("the server ends").unwrap();
    assert_eq!(cut_off, 1);
}
