//! The document: every reference resolves, every operation says what it answers, and what it says is what is answered.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Api, campaign};

fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| match (key.as_str(), value) {
            ("$ref", Value::String(target)) => drop(found.insert(target)),
            (_, value) => references(value, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_reference_resolves_and_every_operation_is_described() {
    let document = Api::new().await.get("/openapi.json").await.json;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.contains("#/components/schemas/Problem"));
    for target in found {
        let pointer = target.strip_prefix('#').expect("references stay inside the document");
        assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
    }
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let place = format!("{method} {path}");
            assert!(
                ids.insert(operation["operationId"].as_str().unwrap().to_owned()),
                "{place}: id used twice"
            );
            assert!(!operation["summary"].as_str().unwrap().is_empty(), "{place}");
            let responses = operation["responses"].as_object().unwrap();
            let expected = [
                (path.starts_with("/api/"), &["400", "429", "500", "503"][..]),
                (!operation["requestBody"].is_null(), &["408", "413"]),
                (!operation["security"].is_null(), &["401", "403"]),
                (path.contains("{couponId}"), &["404"]),
            ];
            for (_, statuses) in expected.iter().filter(|(applies, _)| *applies) {
                for status in *statuses {
                    assert!(responses.contains_key(*status), "{place} does not describe {status}");
                }
            }
            for (status, response) in responses {
                assert!(!response["description"].as_str().unwrap().is_empty(), "{place} {status}");
                if path.starts_with("/api/") && status.starts_with(['4', '5']) {
                    let schema = &response["content"]["application/problem+json"]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/Problem", "{place} {status}");
                }
            }
        }
    }
}

/// A reader sees a whole example of every body and of every refusal, and those are what the server really says.
#[tokio::test]
async fn every_body_and_every_refusal_has_an_example() {
    let document = Api::new().await.get("/openapi.json").await.json;
    let schemas = &document["components"]["schemas"];
    let mut codes = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let bodies = operation["requestBody"]["content"].as_object().into_iter().flatten();
            for (_, content) in bodies {
                let name = content["schema"]["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
                assert!(schemas[name]["example"].is_object(), "{method} {path}: {name} has no example");
            }
            for (status, response) in operation["responses"].as_object().unwrap() {
                let place = format!("{method} {path} {status}");
                let Some(problem) = response["content"].get("application/problem+json") else { continue };
                let examples =
                    problem["examples"].as_object().unwrap_or_else(|| panic!("{place}: no example"));
                let description = response["description"].as_str().unwrap();
                for code in
                    description.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| w.starts_with("CP"))
                {
                    let shown = &examples[code]["value"];
                    assert_eq!(shown["errorCode"], code, "{place}");
                    codes.insert(code.to_owned());
                }
                for example in examples.values() {
                    assert_eq!(example["value"]["status"].to_string(), *status, "{place}: {example}");
                }
            }
        }
    }
    let all: BTreeSet<String> = (1..=15).map(|number| format!("CP{number:03}")).collect();
    assert_eq!(codes, all, "every code of the contract is documented where it is answered");
    for name in ["Coupon", "UserCoupon", "Stock"] {
        let (schema, example) = (&schemas[name], schemas[name]["example"].as_object().unwrap());
        assert!(example.keys().all(|field| schema["properties"].get(field).is_some()), "{name}: {example:?}");
        let required = schema["required"].as_array().unwrap().iter().filter_map(Value::as_str);
        assert_eq!(required.filter(|field| !example.contains_key(*field)).count(), 0, "{name}: {example:?}");
    }
}

/// The examples of the document are accepted by the server they describe.
#[tokio::test]
async fn examples_of_request_bodies_work() {
    let api = Api::new().await;
    let document = api.get("/openapi.json").await.json;
    let example = |name: &str| document["components"]["schemas"][name]["example"].clone();
    let id = api.open_campaign(5).await;
    let user_coupon = api.issue(id, 1).await;
    assert_eq!(api.post("/api/coupon", example("CreateCouponRequest")).await.status, 201);
    let patch = example("PatchCouponRequest").to_string();
    assert_eq!(api.send("PATCH", &format!("/api/coupon/{id}"), patch).await.status, 200);
    assert_eq!(api.post(&format!("/api/coupon/{id}/issue"), example("IssueRequest")).await.status, 201);
    assert_eq!(
        api.post(&format!("/api/user-coupons/{user_coupon}/use"), example("UseRequest")).await.status,
        200
    );
    let cancel = example("CancelUseRequest");
    assert_eq!(api.post(&format!("/api/user-coupons/{user_coupon}/cancel-use"), cancel).await.status, 200);
    assert_eq!(
        api.post(&format!("/api/user-coupons/{user_coupon}/revoke"), example("RevokeRequest")).await.status,
        200
    );
}

/// What is answered has exactly the fields that the document describes, and all required ones.
#[tokio::test]
async fn answers_are_as_described() {
    let api = Api::new().await;
    let document = api.get("/openapi.json").await.json;
    let created = api.post("/api/coupon", campaign(2)).await;
    let id = api.open_campaign(2).await;
    let issued = api.post(&format!("/api/coupon/{id}/issue"), json!({ "userId": 1 })).await;
    let duplicate = api.post(&format!("/api/coupon/{id}/issue"), json!({ "userId": 1 })).await;
    let stock = api.get(&format!("/api/coupon/{id}/stock")).await;
    for (name, value) in [
        ("Coupon", &created.json),
        ("UserCoupon", &issued.json),
        ("Problem", &duplicate.json),
        ("Stock", &stock.json),
        ("Page_Coupon", &api.get("/api/coupon").await.json),
        ("Readiness", &api.get("/readyz").await.json),
        ("Health", &api.get("/healthz").await.json),
    ] {
        let schema = &document["components"]["schemas"][name];
        let properties = schema["properties"].as_object().unwrap_or_else(|| panic!("no schema {name}"));
        let fields: BTreeSet<&String> = value.as_object().unwrap().keys().collect();
        for field in &fields {
            assert!(properties.contains_key(field.as_str()), "{name}.{field} is answered, not described");
        }
        for required in schema["required"].as_array().into_iter().flatten() {
            let required = required.as_str().unwrap().to_owned();
            assert!(fields.contains(&required), "{name}.{required} is required and not answered: {value}");
        }
    }
}
