//! Who may use the admin paths: the holder of the token, or, with no token configured, whoever is on this machine.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};
use subtle::ConstantTimeEq;

use super::{ApiState, error::Problem, streams::StreamsState};

/// How the admin paths are guarded.
#[derive(Clone)]
pub enum AdminGuard {
    /// A bearer token, compared in constant time.
    Token(Arc<str>),
    /// No token, and the server listens on loopback only: open.
    LoopbackOpen,
    /// No token, and the server can be reached from elsewhere: closed.
    Closed,
}

impl AdminGuard {
    /// Chooses by configuration.
    pub fn new(token: Option<&str>, listen: std::net::SocketAddr) -> Self {
        match token {
            Some(token) => Self::Token(token.into()),
            None if listen.ip().is_loopback() => Self::LoopbackOpen,
            None => Self::Closed,
        }
    }

    fn admit(&self, parts: &Parts) -> Result<Admin, Problem> {
        let authorization = parts.headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        self.check(authorization).map(Admin)
    }

    fn check(&self, authorization: Option<&[u8]>) -> Result<(), Problem> {
        let token = match self {
            Self::LoopbackOpen => return Ok(()),
            Self::Closed => {
                return Err(Problem::forbidden(
                    "no admin.token is configured and the server does not listen on loopback only",
                ));
            }
            Self::Token(token) => token,
        };
        let Some(given) = authorization else {
            return Err(Problem::unauthorized("send Authorization: Bearer <admin.token>"));
        };
        let Some((scheme, given)) = given.split_at_checked(7) else {
            return Err(Problem::unauthorized("send Authorization: Bearer <admin.token>"));
        };
        // The comparison's time depends on the lengths only.
        if scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(token.as_bytes())) {
            return Ok(());
        }
        Err(Problem::unauthorized("this is not the admin token"))
    }
}

/// Proof that the caller may use admin paths; a handler that takes it cannot forget the check.
pub struct Admin(());

impl FromRequestParts<Arc<ApiState>> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<ApiState>) -> Result<Self, Problem> {
        state.admin.admit(parts)
    }
}

impl FromRequestParts<Arc<StreamsState>> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<StreamsState>) -> Result<Self, Problem> {
        state.admin.admit(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards() {
        let loopback = "127.0.0.1:1".parse().unwrap();
        let everywhere = "0.0.0.0:1".parse().unwrap();
        let status = |guard: &AdminGuard, header: Option<&str>| {
            guard.check(header.map(str::as_bytes)).map_or_else(|problem| problem.status, |()| 200)
        };
        let token = AdminGuard::new(Some("t0ken"), everywhere);
        for (header, expected) in [
            (Some("Bearer t0ken"), 200),
            (Some("bearer t0ken"), 200),
            (Some("Bearer t0keN"), 401),
            (Some("Bearer t0ken "), 401),
            (Some("Bearer "), 401),
            (Some("t0ken"), 401),
            (Some("Basic dDBrZW4="), 401),
            (None, 401),
        ] {
            assert_eq!(status(&token, header), expected, "{header:?}");
        }
        assert_eq!(status(&AdminGuard::new(None, loopback), None), 200);
        assert_eq!(status(&AdminGuard::new(None, everywhere), None), 403);
        // A token guards loopback too.
        assert_eq!(status(&AdminGuard::new(Some("t"), loopback), None), 401);
    }
}
