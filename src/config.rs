//! Configuration: raw, then validated; every key documented in `config/default.toml`.
