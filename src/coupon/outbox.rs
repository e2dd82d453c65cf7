//! outbox, under construction.
