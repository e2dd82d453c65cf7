//! The OpenAPI 3.1 document, made from the handlers.
//!
//! What every operation shares (400, 413, 429, 500, 503 and so on) is added here from one place, by what the
//! operation takes: a body, an id, the admin token. So are the examples of problems: each response that names codes
//! shows the very problem the server makes of each. A test holds the document's paths equal to the routes.

use std::sync::LazyLock;

use utoipa::{
    Modify, OpenApi, PartialSchema,
    openapi::{
        ContentBuilder, Ref, RefOr, Response, ResponseBuilder, Schema,
        example::ExampleBuilder,
        path::{HttpMethod, Operation},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{
    ALIASES, coupons,
    error::{self, Problem},
    ops, streams, user_coupons,
};
use crate::coupon::model::UserCoupon;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "sluice",
        description = "First-come-first-served coupons. Errors are RFC 9457 problems with an errorCode; every \
                       change may be repeated safely. Request bodies are JSON of at most 16 KiB."
    ),
    paths(
        coupons::create, coupons::list, coupons::get, coupons::patch, coupons::open, coupons::pause, coupons::close,
        coupons::stock, coupons::issue, user_coupons::get, user_coupons::list_by_user, user_coupons::redeem,
        user_coupons::cancel_use, user_coupons::revoke, streams::topologies, streams::reload, ops::healthz, ops::readyz, ops::metrics, ops::openapi_json,
    ),
    tags(
        (name = "coupon", description = "Campaigns"),
        (name = "user-coupon", description = "Coupons issued to users"),
        (name = "streams", description = "Topologies of this process"),
        (name = "operations", description = "For those who run it"),
    ),
    components(schemas(error::Problem)),
    modifiers(&Shared)
)]
struct Document;

/// The document as text, made once.
pub fn json() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        document().to_pretty_json().expect("the document is made of texts, numbers and maps with text keys")
    });
    &TEXT
}

/// The document.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").into();
    document
}

/// Adds what is the same everywhere.
struct Shared;

impl Modify for Shared {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("admin.token; without one the admin paths answer on a loopback address only"))
            .build();
        document
            .components
            .get_or_insert_default()
            .security_schemes
            .insert("admin".into(), RefOr::T(SecurityScheme::Http(scheme)));
        add_aliases(document);
        for (path, item) in &mut document.paths.paths {
            let operations =
                [&mut item.get, &mut item.post, &mut item.patch].into_iter().filter_map(Option::as_mut);
            for operation in operations {
                add_shared_errors(path, operation);
                add_examples(path, operation);
            }
        }
    }
}

/// An alias is the same operation under another path or method.
fn add_aliases(document: &mut utoipa::openapi::OpenApi) {
    for (method, alias, path) in ALIASES {
        let Some(original) = document.paths.paths.get(*path).and_then(|item| item.post.clone()) else {
            continue;
        };
        let mut operation = original;
        operation.operation_id =
            Some(format!("issueCouponAlias{}{}", method.as_str(), alias.rsplit('/').next().unwrap_or("")));
        operation.summary = Some(format!("The same as POST {path}."));
        let method = if *method == axum::http::Method::PATCH { HttpMethod::Patch } else { HttpMethod::Post };
        document.paths.add_path_operation(*alias, vec![method], operation);
    }
}

/// The errors an operation can always answer with, by what it takes.
fn add_shared_errors(path: &str, operation: &mut Operation) {
    let mut add = |status: u16, description: &str| {
        let responses = &mut operation.responses.responses;
        responses.entry(status.to_string()).or_insert_with(|| RefOr::T(problem(description)));
    };
    if path.starts_with("/api/") {
        add(400, "Malformed JSON, id or parameter; the detail names it");
        add(429, "More requests than are worked on at once; come back after Retry-After seconds");
        add(
            503,
            "CP009 nothing done, CP010 outcome unknown: repeating the same request is safe; `dependency` says which one",
        );
    }
    if path.contains("{couponId}") {
        add(404, "CP001 coupon not found");
    } else if path.contains("{userCouponId}") {
        add(404, "CP006 user coupon not found");
    }
    add(500, "A fault in the server, logged under the request id");
    if operation.request_body.is_some() {
        let responses = &mut operation.responses.responses;
        responses.entry("408".into()).or_insert_with(|| RefOr::T(problem("The body did not arrive in time")));
        responses.entry("413".into()).or_insert_with(|| RefOr::T(problem("The body is larger than 16 KiB")));
    }
    if operation.security.is_some() {
        let responses = &mut operation.responses.responses;
        responses
            .entry("401".into())
            .or_insert_with(|| RefOr::T(problem("The admin token is missing or wrong")));
        responses
            .entry("403".into())
            .or_insert_with(|| RefOr::T(problem("No admin token is configured here")));
    }
}

/// Shows the problem of every code that a response's description names, or, where it names none, the status' own.
fn add_examples(path: &str, operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        let codes: Vec<&str> = response.description.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let Some(RefOr::T(content)) = response.content.get_mut(error::PROBLEM_JSON) else { continue };
        let shown = PROBLEMS.iter().filter(|problem| match problem.error_code {
            Some(code) => codes.contains(&code),
            // Conflicts and the like without a code are those of topologies.
            None if problem.is_of_topologies() => {
                path.starts_with("/api/streams/") && *status == problem.status.to_string()
            }
            None => *status == problem.status.to_string(),
        });
        for problem in shown {
            let mut problem = problem.clone();
            problem.instance =
                path.replace("{couponId}", "42").replace("{userCouponId}", "257").replace("{userId}", "1001");
            problem.request_id = "0193c2f0-6f1e-7cc1-9d3a-2f6f0e0a51b7".into();
            let name = problem.error_code.unwrap_or(problem.title);
            let example =
                ExampleBuilder::new().summary(problem.title).value(Some(serde_json::json!(problem))).build();
            content.examples.insert(name.into(), RefOr::T(example));
        }
    }
}

/// One of each kind, as the server makes them.
static PROBLEMS: LazyLock<Vec<Problem>> = LazyLock::new(|| {
    let mut problems = error::examples(&sample());
    problems.extend([
        Problem::malformed("userId: invalid type: string \"x\", expected i64 at line 1 column 13"),
        Problem::unauthorized("send Authorization: Bearer <admin.token>"),
        Problem::forbidden("no admin.token is configured and the server does not listen on loopback only"),
        Problem::too_slow(),
        Problem::too_large(16_384),
        Problem::overloaded(1),
        Problem::internal(),
        Problem::no_such_path(),
    ]);
    problems.extend(streams::examples());
    problems
});

/// The user coupon that the schema shows, as the one a problem refers to.
fn sample() -> UserCoupon {
    let RefOr::T(Schema::Object(schema)) = UserCoupon::schema() else { unreachable!("it is an object") };
    let example = schema.example.into_iter().chain(schema.examples).next();
    serde_json::from_value(example.expect("it has an example")).expect("the example is a user coupon")
}

fn problem(description: &str) -> Response {
    let schema = RefOr::Ref(Ref::from_schema_name("Problem"));
    ResponseBuilder::new()
        .description(description)
        .content(error::PROBLEM_JSON, ContentBuilder::new().schema(Some(schema)).build())
        .build()
}
