//! `peek`, `for_each`: code run for its effect; `peek` passes the record on (Kafka's `KStreamPeek`, `ForeachProcessor`).

use std::sync::Arc;

use super::{
    functions::{Data, ForeachAction, typed},
    kstream::KStream,
    named::Named,
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::AnyRecord,
};

struct Peek {
    action: ForeachAction,
    forward: bool,
}

impl AnyProcessor for Peek {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        (self.action)(record.key.as_ref(), record.value.as_ref())?;
        if self.forward { context.forward(record) } else { Ok(()) }
    }
}

/// Runs `action` on each record and, with `forward`, passes it on.
pub(crate) fn peek_processor(action: ForeachAction, forward: bool) -> ProcessorSupplier {
    Arc::new(move || Box::new(Peek { action: action.clone(), forward }))
}

fn action<K: Data, V: Data>(f: impl Fn(Option<&K>, Option<&V>) + Send + Sync + 'static) -> ForeachAction {
    Arc::new(move |key, value| {
        f(typed(key)?, typed(value)?);
        Ok(())
    })
}

impl<K: Data, V: Data> KStream<K, V> {
    /// Looks at each record on its way. After a crash the same record may be seen again.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// # use std::sync::{Arc, atomic::{AtomicI64, Ordering}};
    /// let seen = Arc::new(AtomicI64::new(0));
    /// let sum = seen.clone();
    /// let builder = StreamsBuilder::new();
    /// builder
    ///     .stream::<String, i64>("in")
    ///     .peek(move |_, n| drop(sum.fetch_add(*n.unwrap_or(&0), Ordering::Relaxed)))
    ///     .to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, i64>("in", String::serde(), i64::serde());
    /// input.pipe_input(None, Some(3), 0)?;
    /// assert_eq!(seen.load(Ordering::Relaxed), 3);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn peek(&self, f: impl Fn(Option<&K>, Option<&V>) + Send + Sync + 'static) -> Self {
        self.peek_named(f, Named::default())
    }

    /// As [`peek`](Self::peek), named.
    pub fn peek_named(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> Self {
        let supplier = peek_processor(action(f), true);
        KStream::new(self.core.processor(&named.into(), "KSTREAM-PEEK-", supplier))
    }

    /// Ends the stream in code.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// # use std::sync::{Arc, Mutex};
    /// let lines = Arc::new(Mutex::new(vec![]));
    /// let sink = lines.clone();
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, String>("in").for_each(move |_, line| sink.lock().unwrap().extend(line.cloned()));
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("in", String::serde(), String::serde());
    /// input.pipe_input(None, Some("hello".into()), 0)?;
    /// assert_eq!(*lines.lock().unwrap(), ["hello"]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn for_each(&self, f: impl Fn(Option<&K>, Option<&V>) + Send + Sync + 'static) {
        self.for_each_named(f, Named::default());
    }

    /// As [`for_each`](Self::for_each), named.
    pub fn for_each_named(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) + Send + Sync + 'static,
        named: impl Into<Named>,
    ) {
        let supplier = peek_processor(action(f), false);
        self.core.processor(&named.into(), "KSTREAM-FOREACH-", supplier);
    }
}
