//! `filter`, `filter_not` on streams: keeps the records a predicate wants (Kafka's `KStreamFilter`).

use std::sync::Arc;

use super::{
    functions::{Data, Predicate, UserResult, predicate},
    kstream::KStream,
    named::Named,
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::AnyRecord,
};

struct Filter {
    predicate: Predicate,
    not: bool,
}

impl AnyProcessor for Filter {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        if self.not ^ (self.predicate)(record.key.as_ref(), record.value.as_ref())? {
            context.forward(record)?;
        }
        Ok(())
    }
}

/// Keeps what `predicate` wants, or with `not` what it does not.
pub(crate) fn filter_processor(predicate: Predicate, not: bool) -> ProcessorSupplier {
    Arc::new(move || Box::new(Filter { predicate: predicate.clone(), not }))
}

impl<K: Data, V: Data> KStream<K, V> {
    /// Keeps the records for which `f` is true. Keys and values may be null.
    ///
    /// ```
    /// use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    ///
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, i64>("numbers").filter(|_, n| n.is_some_and(|n| n % 2 == 0)).to("even");
    ///
    /// let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// let input = driver.create_input_topic::<String, i64>("numbers", String::serde(), i64::serde());
    /// let output = driver.create_output_topic::<String, i64>("even", String::serde(), i64::serde());
    /// for n in 1..=4 {
    ///     input.pipe_input(Some("k".into()), Some(n), n)?;
    /// }
    /// let values: Vec<_> = output.read_key_values()?.into_iter().map(|(_, value)| value.unwrap()).collect();
    /// assert_eq!(values, [2, 4]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn filter(&self, f: impl Fn(Option<&K>, Option<&V>) -> bool + Send + Sync + 'static) -> Self {
        self.filter_named(f, Named::default())
    }

    /// As [`filter`](Self::filter), named.
    pub fn filter_named(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> bool + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> Self {
        self.filtered(predicate(move |key, value| Ok(f(key, value))), false, &named.into())
    }

    /// As [`filter`](Self::filter), with a predicate that may fail.
    pub fn try_filter(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<bool> + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> Self {
        self.filtered(predicate(f), false, &named.into())
    }

    /// Keeps the records for which `f` is false.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, i64>("in").filter_not(|_, n| n.is_none_or(|n| *n < 0)).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// for n in [Some(-1), Some(1), None] {
    ///     input.pipe_input(None, n, 0)?;
    /// }
    /// assert_eq!(output.read_key_values()?, [(None, Some(1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn filter_not(&self, f: impl Fn(Option<&K>, Option<&V>) -> bool + Send + Sync + 'static) -> Self {
        self.filter_not_named(f, Named::default())
    }

    /// As [`filter_not`](Self::filter_not), named.
    pub fn filter_not_named(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> bool + Send + Sync + 'static,
        named: impl Into<Named>,
    ) -> Self {
        self.filtered(predicate(move |key, value| Ok(f(key, value))), true, &named.into())
    }

    fn filtered(&self, predicate: Predicate, not: bool, named: &Named) -> Self {
        KStream::new(self.core.processor(named, "KSTREAM-FILTER-", filter_processor(predicate, not)))
    }
}
