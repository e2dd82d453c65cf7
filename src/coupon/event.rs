//! event, under construction.
