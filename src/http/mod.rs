//! The HTTP API: parse, one call into the domain, answer.
