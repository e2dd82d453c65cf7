//! The log inside the process: partitions, groups, transactions, kept in SQLite (file or memory).
