//! Reading windowed tables: the key is a window's (Kafka's `KStreamWindowAggregateValueGetter` and its session twin).

use std::sync::Arc;

use super::{
    table_store::key_bytes,
    value_getter::{ValueGetter, ValueGetterSupplier},
    windowed::UnwindowKey,
};
use crate::streams::{
    error::{ProcessingError, Result},
    processor::{NodeContext, StoreId},
    record::{AnyValue, Timestamp},
    serdes::AnySerde,
    state::ValueAndTimestamp,
};

#[derive(Clone, Copy)]
enum Kind {
    Window,
    Session,
}

/// Reads a window store.
pub(crate) fn of_window_store(store: &str, unwindow_key: UnwindowKey) -> ValueGetterSupplier {
    supplier(store, unwindow_key, Kind::Window)
}

/// Reads a session store.
pub(crate) fn of_session_store(store: &str, unwindow_key: UnwindowKey) -> ValueGetterSupplier {
    supplier(store, unwindow_key, Kind::Session)
}

fn supplier(store: &str, unwindow_key: UnwindowKey, kind: Kind) -> ValueGetterSupplier {
    let name = store.to_owned();
    ValueGetterSupplier {
        store_names: vec![name.clone()],
        make: Arc::new(move || {
            Box::new(WindowGetter { name: name.clone(), unwindow_key, kind, store: None })
        }),
    }
}

struct WindowGetter {
    name: String,
    unwindow_key: UnwindowKey,
    kind: Kind,
    store: Option<(StoreId, AnySerde)>,
}

impl ValueGetter for WindowGetter {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let id = context.store(&self.name)?;
        self.store = Some((id, context.task().store_builder(id).key_serde.clone()));
        Ok(())
    }

    fn get(&mut self, context: NodeContext<'_>, key: Option<&AnyValue>) -> Result<Option<ValueAndTimestamp>> {
        let (store, serde) = self.store.as_ref().expect("init runs before the first read");
        let key = key.ok_or_else(|| ProcessingError::new("NullPointerException", "key cannot be null"))?;
        let (inner, window) = (self.unwindow_key)(key)?;
        let bytes = key_bytes(serde, Some(&inner))?;
        match self.kind {
            Kind::Window => context.with_window(*store, |rows| rows.fetch(&bytes, window.start)),
            Kind::Session => {
                let value = context
                    .with_session(*store, |rows| rows.fetch_session(&bytes, window.start, window.end))?;
                Ok(value.map(|value| ValueAndTimestamp { value, timestamp: window.end }))
            }
        }
    }

    fn get_as_of(
        &mut self,
        context: NodeContext<'_>,
        key: Option<&AnyValue>,
        _: Timestamp,
    ) -> Result<Option<ValueAndTimestamp>> {
        self.get(context, key)
    }

    fn is_versioned(&self) -> bool {
        false
    }
}
