//! The documents are true: every request in docs/api.md is sent to a real `sluice serve`, in order, and answered as it says.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{binary, server::Server};

const API: &str = include_str!("../../docs/api.md");

/// A message as it is written in the document.
struct Message<'a> {
    /// Line of the document.
    line: usize,
    first: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    body: &'a str,
}

/// The fenced blocks of a language, with the number of their first line.
fn blocks<'a>(document: &'a str, language: &str) -> Vec<(usize, &'a str)> {
    let opening = format!("```{language}\n");
    let mut found = Vec::new();
    for (at, _) in document.match_indices(&opening) {
        let text = &document[at + opening.len()..];
        let end = text.find("\n```").expect("a block ends");
        found.push((document[..at].lines().count() + 2, &text[..end]));
    }
    found
}

fn message((line, text): (usize, &str)) -> Message<'_> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let (first, headers) = head.split_once('\n').unwrap_or((head, ""));
    let headers = headers.lines().map(|line| line.split_once(": ").expect("a header")).collect();
    Message { line, first, headers, body }
}

/// Does the answer have the shape and the values of the document? `"…"` is any text, a member `"…"` any further members.
fn differs(written: &Value, real: &Value, place: &str) -> Option<String> {
    match (written, real) {
        (Value::String(any), Value::String(_)) if any == "…" => None,
        (Value::Object(written), Value::Object(real)) => {
            let open = written.contains_key("…");
            let missing =
                written.iter().filter(|(name, _)| *name != "…").find_map(|(name, value)| {
                    match real.get(name) {
                        None => Some(format!("{place}.{name} is not in the answer")),
                        Some(real) => differs(value, real, &format!("{place}.{name}")),
                    }
                });
            let extra = real.keys().find(|name| !open && !written.contains_key(*name));
            missing.or_else(|| extra.map(|name| format!("{place}.{name} is not in the document")))
        }
        (Value::Array(written), Value::Array(real)) if written.len() == real.len() => {
            let mut pairs = written.iter().zip(real).enumerate();
            pairs.find_map(|(at, (written, real))| differs(written, real, &format!("{place}[{at}]")))
        }
        _ if written == real => None,
        _ => Some(format!("{place} is {real}, the document says {written}")),
    }
}

#[tokio::test]
async fn every_request_of_the_api_document_is_answered_as_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let mut serve = binary::sluice(&["serve"]);
    serve.current_dir(directory.path()).env("SLUICE__ADMIN__TOKEN", "change-me");
    let server = Server::start(&mut serve);
    let http = reqwest::Client::new();
    // Ready is what the document's own request for it finds; topologies need a moment.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let ready = http.get(format!("{}/readyz", server.url)).send().await.unwrap().text().await.unwrap();
        if !ready.contains("\"ready\":false") {
            break;
        }
        assert!(Instant::now() < deadline, "{ready}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let messages: Vec<Message<'_>> = blocks(API, "http").into_iter().map(message).collect();
    assert!(messages.len() > 60, "{} messages", messages.len());
    for pair in messages.chunks(2) {
        let [request, response] = pair else { panic!("a request without an answer") };
        let place = format!("docs/api.md:{}: {}", request.line, request.first);
        let (method, path) = request.first.split_once(' ').expect("METHOD PATH");
        let mut sent = http.request(method.parse().unwrap(), format!("{}{path}", server.url));
        for (name, value) in &request.headers {
            sent = sent.header(*name, *value);
        }
        let answer = sent.body(request.body.to_owned()).send().await.unwrap();
        let status =
            format!("HTTP/1.1 {} {}", answer.status().as_u16(), answer.status().canonical_reason().unwrap());
        let headers = answer.headers().clone();
        let text = answer.text().await.unwrap();
        assert_eq!(status, response.first, "{place}\n{text}");
        for (name, value) in &response.headers {
            assert_eq!(
                headers.get(*name).map(|header| header.to_str().unwrap()),
                Some(*value),
                "{place}: {name}"
            );
        }
        if !response.body.is_empty() {
            let written: Value = serde_json::from_str(response.body)
                .unwrap_or_else(|error| panic!("docs/api.md:{}: {error}", response.line));
            let real =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{place}: {error} in {text}"));
            assert_eq!(differs(&written, &real, "body"), None, "{place}\n{text}");
        }
    }
}

/// Every path and method that the service has is in the document.
#[tokio::test]
async fn the_api_document_leaves_nothing_out() {
    let openapi = crate::http::Api::new().await.get("/openapi.json").await.json;
    let requests: Vec<&str> = blocks(API, "http").into_iter().map(|block| message(block).first).collect();
    for (path, methods) in openapi["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys().filter(|name| *name != "parameters") {
            let is_it = |request: &&str| {
                let Some((sent, target)) = request.split_once(' ') else { return false };
                let target = target.split('?').next().unwrap_or_default();
                let same = target.split('/').count() == path.split('/').count()
                    && target.split('/').zip(path.split('/')).all(|(a, b)| a == b || b.starts_with('{'));
                sent.eq_ignore_ascii_case(method) && same
            };
            assert!(requests.iter().any(is_it), "docs/api.md shows no {method} {path}");
        }
    }
    for code in 1..=15 {
        assert!(API.contains(&format!("| CP{code:03} |")), "docs/api.md does not explain CP{code:03}");
    }
}

#[test]
fn a_difference_is_seen() {
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    for (written, real, expected) in [
        (r#"{"a": 1, "t": "…"}"#, r#"{"a": 1, "t": "2026"}"#, None),
        (r#"{"a": 1}"#, r#"{"a": 1, "b": 2}"#, Some("body.b is not in the document")),
        (r#"{"a": 1, "…": "…"}"#, r#"{"a": 1, "b": 2}"#, None),
        (r#"{"a": 1, "b": 2}"#, r#"{"a": 1}"#, Some("body.b is not in the answer")),
        (r#"{"a": [{"b": 1}]}"#, r#"{"a": [{"b": 2}]}"#, Some("body.a[0].b is 2, the document says 1")),
        (r#"{"a": "…"}"#, r#"{"a": 3}"#, Some("body.a is 3, the document says \"…\"")),
    ] {
        assert_eq!(differs(&json(written), &json(real), "body").as_deref(), expected, "{written} {real}");
    }
}
