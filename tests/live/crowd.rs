//! A crowd over real HTTP: what everybody was told, kept to be compared with what the ledger, the gate and the log say.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::told::{Asked, Told};

/// The definite answer to one request.
#[derive(Clone, Debug)]
pub struct Answer {
    pub user: i64,
    pub status: u16,
    /// `errorCode` of a refusal.
    pub code: Option<String>,
    pub latency: Duration,
    /// Everything that was answered until then, the definite answer last.
    told: Vec<Told>,
}

/// Users `1..=users` all want the campaign's coupon at once; every twentieth asks twice. Requests alternate between the
/// processes at `urls`, `in_flight` at a time.
pub async fn rush(
    http: &reqwest::Client,
    urls: &[&str],
    coupon: i64,
    users: i64,
    in_flight: usize,
) -> Vec<Answer> {
    // The two requests of one user stand side by side, so they are under way together, at different processes.
    let requests: Vec<i64> =
        (1..=users).flat_map(|user| std::iter::repeat_n(user, if user % 20 == 0 { 2 } else { 1 })).collect();
    let requests = Arc::new(requests);
    let next = Arc::new(AtomicUsize::new(0));
    let answers = Arc::new(Mutex::new(Vec::with_capacity(requests.len())));
    let workers: Vec<_> = (0..in_flight)
        .map(|_| {
            let (requests, next, answers, http) =
                (requests.clone(), next.clone(), answers.clone(), http.clone());
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            tokio::spawn(async move {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(user) = requests.get(at).copied() else { return };
                    let answer = issue(&http, &urls[at % urls.len()], coupon, user).await;
                    answers.lock().expect("no worker panics while it holds the lock").push(answer);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("a worker does not panic");
    }
    Arc::into_inner(answers).expect("all workers ended").into_inner().expect("no worker panicked")
}

/// One issue. An overloaded or unreachable server is asked again, as a client would, until it gave a definite answer.
pub async fn issue(http: &reqwest::Client, url: &str, coupon: i64, user: i64) -> Answer {
    let start = Instant::now();
    let deadline = start + Duration::from_secs(60);
    let mut told = Vec::new();
    loop {
        let asked = Asked::now(coupon, user);
        let request =
            http.post(format!("{url}/api/coupon/{coupon}/issue-redis")).json(&json!({ "userId": user }));
        let outcome = request.send().await;
        let (status, body) = match outcome {
            Ok(response) => (response.status().as_u16(), response.json::<Value>().await.unwrap_or_default()),
            Err(error) => (0, json!({ "errorCode": error.to_string() })),
        };
        let code = body["errorCode"].as_str().map(String::from);
        told.push(asked.told(status, code.clone().filter(|_| status != 0)));
        if matches!(status, 0 | 429 | 503) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        return Answer { user, status, code, latency: start.elapsed(), told };
    }
}

/// Everything that a crowd was told.
pub fn told(answers: &[Answer]) -> Vec<Told> {
    answers.iter().flat_map(|answer| answer.told.iter().cloned()).collect()
}

/// How often each status and code was answered: `201`, `409 CP005`.
pub fn count_answers(answers: &[Answer]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        let key = match &answer.code {
            Some(code) => format!("{} {code}", answer.status),
            None => answer.status.to_string(),
        };
        *counts.entry(key).or_insert(0) += 1;
    }
    counts
}

/// The latency that `percent` of the answers did not exceed.
pub fn percentile(answers: &[Answer], percent: usize) -> Duration {
    let mut latencies: Vec<Duration> = answers.iter().map(|answer| answer.latency).collect();
    latencies.sort();
    latencies
        .get((latencies.len() * percent / 100).min(latencies.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}
