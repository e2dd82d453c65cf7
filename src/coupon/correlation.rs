//! The correlation id of the request that is being worked on, for log lines.
//!
//! The id itself travels by value: in the request's context, the history line, the outbox row, the event. Log lines are
//! written deep below, by whoever handles a failure; passing the id down to each of them for that alone would put it
//! into every signature. So the request's task carries it, and a line asks for it with [`current`].

use std::{future::Future, sync::Arc};

tokio::task_local! {
    static REQUEST_ID: Arc<str>;
}

/// Runs a future as the work of this request.
pub fn within<F: Future>(request_id: Arc<str>, future: F) -> impl Future<Output = F::Output> {
    REQUEST_ID.scope(request_id, future)
}

/// The request's id; empty in work that no request asked for.
pub fn current() -> Arc<str> {
    REQUEST_ID.try_with(Arc::clone).unwrap_or_else(|_| Arc::from(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_below_knows_the_request_and_other_tasks_do_not() {
        let below = async {
            tokio::task::yield_now().await;
            current().to_string()
        };
        let other = tokio::spawn(async { current().to_string() });
        assert_eq!(within("r-1".into(), below).await, "r-1");
        assert_eq!(other.await.unwrap(), "");
    }
}
