//! The five processors of a foreign-key join (Kafka's `SubscriptionSend…`, `SubscriptionReceive…`, `SubscriptionJoin…`,
//! `ForeignTableJoin…` and `ResponseJoinProcessorSupplier`).
//!
//! A left change becomes subscriptions at the foreign side; they are stored there and answered with the foreign row; a foreign change answers
//! every row subscribed to its key. The left side joins an answer with its row if that still has the value that asked.

use std::sync::Arc;

use super::subscription::{
    CombinedKey, Instruction, Response, Subscription, ValueHash, hash128, prefix, primary_key_of,
};
use crate::streams::{
    error::{ProcessingError, Result},
    kstream::{
        functions::{Joiner, ValueMapper},
        value_getter::ValueGetter,
    },
    processor::{AnyProcessor, DropReason, NodeContext, StoreId},
    record::{AnyRecord, AnyValue},
    serdes::AnySerde,
    state::ValueAndTimestamp,
};

fn cast<T: Send + Sync + 'static>(value: Option<&AnyValue>) -> Result<&T> {
    Ok(value.and_then(|value| value.downcast_ref::<T>()).ok_or_else(|| {
        ProcessingError::new("ClassCastException", "a foreign-key join was sent something else")
    })?)
}

/// Turns a left row's change into subscriptions.
pub(super) struct SubscriptionSend {
    /// Selects the foreign key of a left row.
    pub extractor: ValueMapper,
    pub foreign_key_serde: AnySerde,
    pub value_serde: AnySerde,
    pub left: bool,
    pub versioned: bool,
}

impl SubscriptionSend {
    fn foreign_key(&self, record: &AnyRecord, value: Option<&AnyValue>) -> Result<Option<AnyValue>> {
        match value {
            Some(_) => Ok((self.extractor)(record.key.as_ref(), value)?),
            None => Ok(None),
        }
    }

    fn differ(&self, a: &AnyValue, b: Option<&AnyValue>) -> Result<bool> {
        let Some(b) = b else { return Ok(true) };
        Ok(self.foreign_key_serde.to_bytes(a)? != self.foreign_key_serde.to_bytes(b)?)
    }

    fn send(
        &self,
        context: NodeContext<'_>,
        record: &AnyRecord,
        foreign_key: Option<AnyValue>,
        instruction: Instruction,
    ) -> Result<()> {
        let Some(primary_key) = record.key.clone() else { return Ok(()) };
        let hash = match &record.value {
            Some(value) => Some(hash128(&self.value_serde.to_bytes(value)?)),
            None => None,
        };
        let primary_partition = context.record_context().partition;
        let subscription: AnyValue =
            Arc::new(Subscription { hash, instruction, primary_key, primary_partition });
        let headers = record.headers.clone();
        context.forward(AnyRecord::new(foreign_key, Some(subscription), record.timestamp, headers))
    }

    /// Every change of a left row is to be answered; a row that leaves a foreign key is forgotten there without an answer.
    fn left_join(&self, context: NodeContext<'_>, record: &AnyRecord) -> Result<()> {
        if record.value.is_none() && record.old.is_none() {
            return Ok(());
        }
        let old = self.foreign_key(record, record.old.as_ref())?;
        let new = self.foreign_key(record, record.value.as_ref())?;
        if let Some(old) = old
            && self.differ(&old, new.as_ref())?
        {
            self.send(context, record, Some(old), Instruction::DeleteKeyNoPropagate)?;
        }
        self.send(context, record, new, Instruction::PropagateNullIfNoForeignValue)
    }

    /// A row without a foreign key has no result; one that leaves a key takes its result back, whether it had one or not.
    fn inner_join(&self, context: NodeContext<'_>, record: &AnyRecord) -> Result<()> {
        let old = self.foreign_key(record, record.old.as_ref())?;
        if record.value.is_none() {
            return match old {
                Some(old) => self.send(context, record, Some(old), Instruction::DeleteKeyAndPropagate),
                None => Ok(()),
            };
        }
        let Some(new) = self.foreign_key(record, record.value.as_ref())? else {
            context.drop_record(DropReason::NullKey);
            return match old {
                Some(old) => self.send(context, record, Some(old), Instruction::DeleteKeyAndPropagate),
                None => Ok(()),
            };
        };
        match old {
            Some(old) if self.differ(&old, Some(&new))? => {
                self.send(context, record, Some(old), Instruction::DeleteKeyNoPropagate)?;
                self.send(context, record, Some(new), Instruction::PropagateNullIfNoForeignValue)
            }
            _ => self.send(context, record, Some(new), Instruction::PropagateOnlyIfForeignValue),
        }
    }
}

impl AnyProcessor for SubscriptionSend {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        if self.versioned && !record.is_latest {
            context.drop_record(DropReason::Late);
            return Ok(());
        }
        if self.left { self.left_join(context, &record) } else { self.inner_join(context, &record) }
    }
}

/// Stores or forgets a subscription, and passes it on to be answered.
pub(super) struct SubscriptionReceive {
    pub store_name: String,
    pub foreign_key_serde: AnySerde,
    pub primary_key_serde: AnySerde,
    pub store: Option<StoreId>,
}

impl AnyProcessor for SubscriptionReceive {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.store = Some(context.store(&self.store_name)?);
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let subscription: &Subscription = cast(record.value.as_ref())?;
        if record.key.is_none() && subscription.instruction != Instruction::PropagateNullIfNoForeignValue {
            context.drop_record(DropReason::NullKey);
            return Ok(());
        }
        if let Some(foreign_key) = &record.key {
            let mut row = prefix(&self.foreign_key_serde.to_bytes(foreign_key)?);
            self.primary_key_serde.serialize(&subscription.primary_key, &mut row)?;
            let value = record.value.clone().filter(|_| !subscription.instruction.deletes());
            let value = value.map(|value| ValueAndTimestamp { value, timestamp: record.timestamp });
            let record_context = context.record_context();
            let store = self.store.expect("init runs before the first record");
            context.with_key_value(store, |store| store.put(row.into(), value, &record_context))?;
        }
        let key: AnyValue = Arc::new(CombinedKey {
            foreign_key: record.key.clone(),
            primary_key: subscription.primary_key.clone(),
        });
        context.forward(AnyRecord { key: Some(key), ..record })
    }
}

fn respond(
    context: NodeContext<'_>,
    primary_key: AnyValue,
    response: Response,
    timestamp: i64,
    record: &AnyRecord,
) -> Result<()> {
    let response: AnyValue = Arc::new(response);
    context.forward(AnyRecord::new(Some(primary_key), Some(response), timestamp, record.headers.clone()))
}

/// Answers a subscription with the foreign row.
pub(super) struct SubscriptionJoin {
    pub foreign: Box<dyn ValueGetter>,
}

impl AnyProcessor for SubscriptionJoin {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.foreign.init(context)
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let key: &CombinedKey = cast(record.key.as_ref())?;
        let subscription: &Subscription = cast(record.value.as_ref())?;
        let row = match &key.foreign_key {
            Some(foreign_key) => self.foreign.get(context, Some(foreign_key))?,
            None => None,
        };
        let timestamp = row.as_ref().map_or(record.timestamp, |row| row.timestamp.max(record.timestamp));
        let foreign_value = match subscription.instruction {
            Instruction::DeleteKeyNoPropagate => return Ok(()),
            Instruction::DeleteKeyAndPropagate => None,
            Instruction::PropagateNullIfNoForeignValue => row.map(|row| row.value),
            Instruction::PropagateOnlyIfForeignValue => match row {
                Some(row) => Some(row.value),
                None => return Ok(()),
            },
        };
        let response = Response {
            hash: subscription.hash,
            foreign_value,
            primary_partition: Some(subscription.primary_partition),
        };
        respond(context, key.primary_key.clone(), response, timestamp, &record)
    }
}

/// Answers every row subscribed to a foreign row that changed, in byte order of their keys.
pub(super) struct ForeignTableJoin {
    pub store_name: String,
    pub foreign_key_serde: AnySerde,
    pub primary_key_serde: AnySerde,
    pub versioned: bool,
    pub store: Option<StoreId>,
}

impl AnyProcessor for ForeignTableJoin {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.store = Some(context.store(&self.store_name)?);
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let Some(foreign_key) = &record.key else {
            context.drop_record(DropReason::NullKey);
            return Ok(());
        };
        if self.versioned && !record.is_latest {
            context.drop_record(DropReason::Late);
            return Ok(());
        }
        let prefix = prefix(&self.foreign_key_serde.to_bytes(foreign_key)?);
        let store = self.store.expect("init runs before the first record");
        let rows = context.with_key_value(store, |store| store.prefix_scan(&prefix))?;
        for (row, value) in rows {
            let subscription: &Subscription = cast(Some(&value.value))?;
            let primary_key = self.primary_key_serde.deserialize(primary_key_of(&row)?)?;
            let response = Response {
                hash: subscription.hash,
                foreign_value: record.value.clone(),
                primary_partition: Some(subscription.primary_partition),
            };
            respond(context, primary_key, response, record.timestamp, &record)?;
        }
        Ok(())
    }
}

/// Joins an answer with the left row, if it is still the row that asked.
pub(super) struct ResponseJoin {
    pub primary: Box<dyn ValueGetter>,
    pub value_serde: AnySerde,
    pub joiner: Joiner,
    pub left: bool,
}

impl AnyProcessor for ResponseJoin {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.primary.init(context)
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let response: &Response = cast(record.value.as_ref())?;
        let current = self.primary.get(context, record.key.as_ref())?.map(|row| row.value);
        let hash: Option<ValueHash> = match &current {
            Some(value) => Some(hash128(&self.value_serde.to_bytes(value)?)),
            None => None,
        };
        if hash != response.hash {
            context.drop_record(DropReason::Overtaken);
            return Ok(());
        }
        let foreign_value = response.foreign_value.as_ref();
        let value = if foreign_value.is_none() && (!self.left || current.is_none()) {
            None
        } else {
            (self.joiner)(record.key.as_ref(), current.as_ref(), foreign_value)?
        };
        context.forward(AnyRecord { value, ..record })
    }
}
