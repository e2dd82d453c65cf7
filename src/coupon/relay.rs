//! relay, under construction.
