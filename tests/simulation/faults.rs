//! What the log and the process do wrong, by chance: refused calls, lost answers, a log that is stuck for a while, and
//! death at a named step of a commit or at a call of the log.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use sluice::streams::{
    error::{Result, StreamsError},
    internals::{CommitStep, LogCall},
};

use crate::random::Random;

/// How a simulated death is told from any other fatal error.
pub const DEATH: &str = "simulated death";

struct State {
    random: Random,
    /// Calls that are refused before the log answers again.
    stuck: u64,
    met: BTreeMap<String, u64>,
}

/// Shared by the hooks of the log and of the threads.
pub struct Faults {
    on: AtomicBool,
    state: Mutex<State>,
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        let state = State { random: Random::new(seed), stuck: 0, met: BTreeMap::new() };
        Self { on: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// Switches all faults; says how it was.
    pub fn switch(&self, on: bool) -> bool {
        self.on.swap(on, Ordering::Relaxed)
    }

    /// The next calls are refused, as many as chance says.
    pub fn get_stuck(&self) {
        let mut state = self.state.lock().expect("one thread");
        state.stuck = 5 + state.random.below(60);
        *state.met.entry("log stuck".to_owned()).or_default() += 1;
    }

    /// How often each fault was met.
    pub fn met(&self) -> BTreeMap<String, u64> {
        self.state.lock().expect("one thread").met.clone()
    }

    /// A call of the log, before it is done or (`done`) when its answer is on the way.
    pub fn call(&self, call: LogCall, done: bool) -> Result<()> {
        if !self.on.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut state = self.state.lock().expect("one thread");
        if state.stuck > 0 {
            state.stuck -= 1;
            return Err(refusal(call, "the log is stuck", &mut state.random));
        }
        if !state.random.chance(8) {
            return Ok(());
        }
        let place = if done { "answer lost" } else { "refused" };
        // An abort that fails is answered with a new producer: nobody would notice the death.
        if call != LogCall::AbortTransaction && state.random.chance(250) {
            *state.met.entry(format!("death at {call:?}, done {done}")).or_default() += 1;
            return Err(StreamsError::Fatal(format!("{DEATH}: {call:?}, done {done}")));
        }
        *state.met.entry(format!("{call:?} {place}")).or_default() += 1;
        Err(refusal(call, place, &mut state.random))
    }

    /// A step of a commit is done.
    pub fn step(&self, step: CommitStep) -> Result<()> {
        if !self.on.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut state = self.state.lock().expect("one thread");
        if !state.random.chance(6) {
            return Ok(());
        }
        *state.met.entry(format!("death after {step:?}")).or_default() += 1;
        Err(StreamsError::Fatal(format!("{DEATH}: after {step:?}")))
    }
}

/// What a caller is told. Where the outcome may matter it is "unknown": it may or may not have happened.
fn refusal(call: LogCall, why: &str, random: &mut Random) -> StreamsError {
    let message = format!("simulated: {call:?}, {why}");
    match call {
        LogCall::CommitTransaction | LogCall::Commit | LogCall::Poll | LogCall::AbortTransaction => {
            StreamsError::Retriable(message)
        }
        LogCall::SendOffsets if random.chance(500) => StreamsError::Retriable(message),
        LogCall::Send | LogCall::Flush | LogCall::SendOffsets => StreamsError::AbortTransaction(message),
    }
}
