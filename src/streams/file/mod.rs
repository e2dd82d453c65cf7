//! Topologies as files.
