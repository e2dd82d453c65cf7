//! The contract of every endpoint on good input, and each refusal with its status and code.

use serde_json::{Value, json};

use super::{Answer, Api, campaign};

fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(
        (answer.status.as_u16(), answer.json["errorCode"].as_str()),
        (status, Some(code)),
        "{answer:?}"
    );
    assert_eq!(answer.header("content-type"), "application/problem+json");
}

#[tokio::test]
async fn a_campaign_lives_from_draft_to_closed() {
    let api = Api::new().await;
    let created = api.post("/api/coupon", campaign(3)).await;
    assert_eq!(created.status, 201, "{created:?}");
    let id = created.json["couponId"].as_i64().unwrap();
    assert_eq!(created.header("location"), format!("/api/coupon/{id}"));
    assert_eq!(created.json["status"], "DRAFT");
    assert_eq!(created.json["isAvailable"], false);
    assert_eq!(created.json["validFrom"], "2019-12-31T15:00:00.000000Z");

    refused(&api.post(&format!("/api/coupon/{id}/issue"), json!({ "userId": 1 })).await, 409, "CP011");
    refused(&api.post(&format!("/api/coupon/{id}/pause"), json!({})).await, 409, "CP014");
    let opened = api.post(&format!("/api/coupon/{id}/open"), json!({})).await;
    assert_eq!((opened.status.as_u16(), &opened.json["status"]), (200, &json!("OPEN")));
    assert_eq!(opened.json["isAvailable"], true);

    api.issue(id, 1).await;
    let paused = api.send("POST", &format!("/api/coupon/{id}/pause"), "").await;
    assert_eq!(paused.json["status"], "PAUSED");
    refused(&api.post(&format!("/api/coupon/{id}/issue"), json!({ "userId": 2 })).await, 409, "CP013");
    assert_eq!(api.post(&format!("/api/coupon/{id}/open"), json!({})).await.status, 200);
    api.issue(id, 2).await;

    let smaller = api.send("PATCH", &format!("/api/coupon/{id}"), "{\"maxIssueCount\": 1}").await;
    refused(&smaller, 422, "CP012");
    let larger = api.send("PATCH", &format!("/api/coupon/{id}"), "{\"maxIssueCount\": 4}").await;
    assert_eq!(larger.json["maxIssueCount"], 4, "{larger:?}");

    assert_eq!(api.post(&format!("/api/coupon/{id}/close"), json!({})).await.json["status"], "CLOSED");
    refused(&api.post(&format!("/api/coupon/{id}/issue"), json!({ "userId": 3 })).await, 409, "CP002");
    refused(&api.post(&format!("/api/coupon/{id}/open"), json!({})).await, 409, "CP014");

    let found = api.get(&format!("/api/coupon/{id}")).await;
    assert_eq!(
        (found.json["issuedCount"].clone(), found.json["status"].clone()),
        (json!(2), json!("CLOSED"))
    );
    let unknown = json!({ "userId": 1 });
    refused(&api.get("/api/coupon/999").await, 404, "CP001");
    refused(&api.get("/api/coupon/999/stock").await, 404, "CP001");
    refused(&api.post("/api/coupon/999/open", json!({})).await, 404, "CP001");
    refused(&api.post("/api/coupon/9007199254740993/issue-redis", unknown).await, 404, "CP001");
}

#[tokio::test]
async fn first_come_first_served_until_sold_out() {
    let api = Api::new().await;
    let id = api.open_campaign(2).await;
    let path = format!("/api/coupon/{id}/issue-redis");
    let first = api.post(&path, json!({ "userId": 9_007_199_254_740_993_i64 })).await;
    assert_eq!(first.status, 201, "{first:?}");
    assert_eq!(first.json["userId"], json!(9_007_199_254_740_993_i64), "ids above 2^53 are exact");
    assert_eq!(first.json["slotNo"], 1);
    assert_eq!(first.json["status"], "ACTIVE");
    let user_coupon = first.json["userCouponId"].as_i64().unwrap();
    assert_eq!(first.header("location"), format!("/api/user-coupons/{user_coupon}"));

    let again = api.post(&path, json!({ "userId": 9_007_199_254_740_993_i64 })).await;
    refused(&again, 409, "CP007");
    assert_eq!(again.json["existing"]["userCouponId"], json!(user_coupon));

    let patched = api.send("PATCH", &path, "{\"userId\": 2, \"future\": true}").await;
    assert_eq!((patched.status.as_u16(), patched.json["slotNo"].clone()), (201, json!(2)));
    refused(&api.post(&format!("/api/coupon/{id}/issue"), json!({ "userId": 3 })).await, 409, "CP005");

    let stock = api.get(&format!("/api/coupon/{id}/stock")).await;
    assert_eq!(stock.json["maxIssueCount"], 2);
    assert_eq!(stock.json["issued"], 2);
    assert_eq!(stock.json["admitted"], 2);
    assert_eq!(stock.json["remaining"], 0);

    let read = api.get(&format!("/api/user-coupons/{user_coupon}")).await;
    assert_eq!(read.json, first.json);
}

#[tokio::test]
async fn a_crowd_gets_exactly_the_seats() {
    let api = Api::new().await;
    let id = api.open_campaign(50).await;
    let path = format!("/api/coupon/{id}/issue-redis");
    // Every user asks twice at once.
    let requests = (1..=200).flat_map(|user| [user, user]);
    let answers =
        futures::future::join_all(requests.map(|user| api.post(&path, json!({ "userId": user })))).await;
    let count = |status: u16, code: Value| {
        answers.iter().filter(|a| a.status.as_u16() == status && a.json["errorCode"] == code).count()
    };
    assert_eq!(count(201, Value::Null), 50);
    assert_eq!(
        count(201, Value::Null) + count(409, json!("CP007")) + count(409, json!("CP005")),
        answers.len()
    );
    let mut slots: Vec<i64> = answers.iter().filter_map(|a| a.json["slotNo"].as_i64()).collect();
    slots.sort_unstable();
    assert_eq!(slots, (1..=50).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_same_idempotency_key_gets_the_same_answer() {
    let api = Api::new().await;
    let id = api.open_campaign(5).await;
    let path = format!("/api/coupon/{id}/issue-redis");
    let key = [("Idempotency-Key", "k1")];
    let first = api.post_with(&path, json!({ "userId": 1 }), &key).await;
    assert_eq!(first.status, 201, "{first:?}");
    let again = api.post_with(&path, json!({ "userId": 1 }), &key).await;
    assert_eq!(again.status, 200, "{again:?}");
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.json, first.json);
    refused(&api.post_with(&path, json!({ "userId": 2 }), &key).await, 422, "CP015");
}

#[tokio::test]
async fn use_cancel_and_use_again() {
    let api = Api::new().await;
    let id = api.open_campaign(5).await;
    let coupon = api.issue(id, 7).await;
    let use_path = format!("/api/user-coupons/{coupon}/use");
    let cancel_path = format!("/api/user-coupons/{coupon}/cancel-use");

    let small = api.post(&use_path, json!({ "orderId": "o-1", "orderAmount": 9_999 })).await;
    refused(&small, 422, "CP004");
    let stranger = json!({ "orderId": "o-1", "orderAmount": 20_000, "userId": 8 });
    refused(&api.post(&use_path, stranger).await, 404, "CP006");
    let used = api.post(&use_path, json!({ "orderId": "o-1", "orderAmount": 20_005, "userId": 7 })).await;
    assert_eq!(used.status, 200, "{used:?}");
    assert_eq!(used.json["status"], "USED");
    assert_eq!(used.json["discountAmount"], 2_000, "10 % of 20,005, floored");
    assert_eq!(used.json["orderId"], "o-1");
    let again = api.post(&use_path, json!({ "orderId": "o-1", "orderAmount": 20_005 })).await;
    assert_eq!((again.status.as_u16(), &again.json), (200, &used.json));
    let other = api.post(&use_path, json!({ "orderId": "o-2", "orderAmount": 20_000 })).await;
    refused(&other, 409, "CP003");
    assert_eq!(other.json["existing"]["orderId"], "o-1");

    refused(&api.post(&cancel_path, json!({ "orderId": "o-2" })).await, 409, "CP003");
    let cancelled = api.post(&cancel_path, json!({ "orderId": "o-1" })).await;
    assert_eq!((cancelled.status.as_u16(), &cancelled.json["status"]), (200, &json!("ACTIVE")));
    assert_eq!(api.post(&cancel_path, json!({ "orderId": "o-1" })).await.status, 200);
    // A number is an order's id too, and the cap holds: 10 % of a million is more than 5,000.
    let capped = api.post(&use_path, json!({ "orderId": 42, "orderAmount": 1_000_000 })).await;
    assert_eq!((&capped.json["orderId"], &capped.json["discountAmount"]), (&json!("42"), &json!(5_000)));
    refused(
        &api.post("/api/user-coupons/999/use", json!({ "orderId": "o", "orderAmount": 1 })).await,
        404,
        "CP006",
    );
}

#[tokio::test]
async fn a_revoked_coupon_cannot_be_used() {
    let api = Api::new().await;
    let id = api.open_campaign(5).await;
    let coupon = api.issue(id, 7).await;
    let revoked = api.post(&format!("/api/user-coupons/{coupon}/revoke"), json!({ "reason": "test" })).await;
    assert_eq!((revoked.status.as_u16(), &revoked.json["status"]), (200, &json!("REVOKED")), "{revoked:?}");
    let body = json!({ "orderId": "o", "orderAmount": 20_000 });
    refused(&api.post(&format!("/api/user-coupons/{coupon}/use"), body).await, 409, "CP002");
}

#[tokio::test]
async fn lists_page_by_cursor_without_loss_or_repeat() {
    let api = Api::new().await;
    let mut coupons = Vec::new();
    for _ in 0..5 {
        let id = api.open_campaign(3).await;
        api.issue(id, 7).await;
        coupons.push(id);
    }
    coupons.reverse();
    for (path, field) in [("/api/coupon", "couponId"), ("/api/coupon/user/7", "couponId")] {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = api.get(&format!("{path}?limit=2&cursor={cursor}")).await;
            assert_eq!(page.status, 200, "{page:?}");
            let items = page.json["items"].as_array().unwrap();
            assert!(items.len() <= 2);
            seen.extend(items.iter().map(|item| item[field].as_i64().unwrap()));
            match page.json["nextCursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(seen, coupons, "{path}: newest first, each once");
    }
    assert_eq!(api.get("/api/coupon?status=DRAFT").await.json["items"], json!([]));
    assert_eq!(api.get("/api/coupon?status=OPEN").await.json["items"].as_array().unwrap().len(), 5);
    assert_eq!(api.get("/api/coupon/user/7?status=USED").await.json["items"], json!([]));
    assert_eq!(api.get("/api/coupon/user/12345").await.json, json!({ "items": [], "nextCursor": null }));
}

#[tokio::test]
async fn a_window_that_is_not_open_yet_says_when() {
    let api = Api::new().await;
    let mut body = campaign(5);
    body["issueFrom"] = json!("2099-01-01T00:00:00Z");
    let id = api.post("/api/coupon", body).await.json["couponId"].as_i64().unwrap();
    api.post(&format!("/api/coupon/{id}/open"), json!({})).await;
    let early = api.post(&format!("/api/coupon/{id}/issue-redis"), json!({ "userId": 1 })).await;
    refused(&early, 409, "CP011");
    assert_eq!(early.json["openAt"], "2099-01-01T00:00:00.000000Z");
    assert_eq!(early.header("retry-after"), early.json["retryAfter"].to_string());
    let ended = api
        .send(
            "PATCH",
            &format!("/api/coupon/{id}"),
            "{\"issueFrom\": null, \"issueUntil\": \"2020-06-01T00:00:00Z\"}",
        )
        .await;
    assert_eq!(ended.status, 200, "{ended:?}");
    refused(&api.post(&format!("/api/coupon/{id}/issue-redis"), json!({ "userId": 1 })).await, 409, "CP002");
}

#[tokio::test]
async fn admin_paths_need_the_token() {
    let api = Api::with(&[("admin.token", "s3cret"), ("http.listen", "0.0.0.0:0")]).await;
    let paths = [
        "/api/coupon",
        "/api/coupon/1/open",
        "/api/coupon/1/pause",
        "/api/coupon/1/close",
        "/api/user-coupons/1/revoke",
    ];
    for path in paths {
        let without = api.post(path, campaign(1)).await;
        assert_eq!(without.status, 401, "{path}");
        assert!(without.header("www-authenticate").starts_with("Bearer"));
        let wrong = api.post_with(path, campaign(1), &[("Authorization", "Bearer s3creT")]).await;
        assert_eq!(wrong.status, 401, "{path}");
        assert!(!wrong.json.to_string().contains("s3cre"), "the token is not echoed");
    }
    assert_eq!(api.send("PATCH", "/api/coupon/1", "{}").await.status, 401);
    let right = api.post_with("/api/coupon", campaign(1), &[("Authorization", "Bearer s3cret")]).await;
    assert_eq!(right.status, 201, "{right:?}");
    // Users need no token.
    refused(&api.post("/api/coupon/999/issue", json!({ "userId": 1 })).await, 404, "CP001");
    // Without a token, off loopback: closed.
    let closed = Api::with(&[("http.listen", "0.0.0.0:0")]).await;
    assert_eq!(closed.post("/api/coupon", campaign(1)).await.status, 403);
}
