//! The accept loop: bounded connections, a time limit on every head, and a stop that finishes what was admitted.
//!
//! axum's own `serve` has neither the limit nor the timer, hence hyper here. What must hold: after `stop` resolves no
//! new connection is accepted, idle ones are closed, requests already being worked on get `shutdown_grace` to finish.

use std::{convert::Infallible, sync::Arc};

use axum::{Router, body::Body, extract::Request};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tower::Service;

use super::{HttpConfig, HttpMetrics};

/// Serves until `stop` resolves, then finishes what was admitted. Returns how many connections were cut off because
/// they took longer than `shutdown_grace`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    config: HttpConfig,
    metrics: Arc<HttpMetrics>,
    stop: impl Future<Output = ()>,
) -> usize {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(config.header_timeout).pipeline_flush(true);
    let places = Arc::new(Semaphore::new(config.connections_max));
    let graceful = GracefulShutdown::new();
    tokio::pin!(stop);

    loop {
        let place = tokio::select! {
            () = &mut stop => break,
            place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let stream = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, or a client that was gone already. Others must still be served:
                    // wait a moment instead of spinning on the same error.
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    continue;
                }
            },
        };
        // Answers are small and complete: waiting to fill a segment only adds latency.
        drop(stream.set_nodelay(true));
        let router = router.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            // A router is always ready; it is cloned because calling needs it exclusively.
            let answer = router.clone().call(request.map(Body::new));
            async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        let connections = metrics.connections.clone();
        connections.inc();
        tokio::spawn(async move {
            // Errors here are the client's doing (reset, garbage, too slow); hyper has answered what it could.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            connections.dec();
            drop(place);
        });
    }

    drop(listener);
    let left = tokio::time::timeout(config.shutdown_grace, graceful.shutdown()).await;
    match left {
        Ok(()) => 0,
        Err(_) => config.connections_max - places.available_permits(),
    }
}
