//! The gate: one atomic, advisory decision per request. The ledger is the truth; a wrong gate may refuse or admit
//! too much, never issue twice.
