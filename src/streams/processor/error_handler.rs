//! What happens to a bad record: the deserialization, processing and production handlers
//! (Kafka's `DeserializationExceptionHandler`, `ProcessingExceptionHandler`, `ProductionExceptionHandler`).

use std::sync::Arc;

use crate::streams::{
    error::ProcessingError,
    record::{ConsumerRecord, ProducerRecord, RecordContext},
};

/// Go on without the record, or stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorResponse {
    /// Drop the record (counted), write the dead letter if one is configured, go on.
    Continue,
    /// Stop the task.
    Fail,
}

/// As [`ErrorResponse`], and try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductionResponse {
    /// Drop the record (counted) and go on.
    Continue,
    /// Send it again.
    Retry,
    /// Stop the task.
    Fail,
}

/// Decides on bytes that could not be read.
pub type DeserializationHandler =
    Arc<dyn Fn(&ConsumerRecord, &ProcessingError) -> ErrorResponse + Send + Sync>;
/// Decides on a record at which a processor (named second) failed.
pub type ProcessingHandler =
    Arc<dyn Fn(&RecordContext, &str, &ProcessingError) -> ErrorResponse + Send + Sync>;
/// Decides on a record that could not be written.
pub type ProductionHandler =
    Arc<dyn Fn(&ProducerRecord, &ProcessingError) -> ProductionResponse + Send + Sync>;

/// The handlers of an application. The default fails at each, as Kafka's; with a dead-letter topic the
/// record and the error's story are written there first.
#[derive(Clone)]
pub struct ErrorHandlers {
    /// On bytes that cannot be read.
    pub deserialization: DeserializationHandler,
    /// On failing user code.
    pub processing: ProcessingHandler,
    /// On records that cannot be written.
    pub production: ProductionHandler,
    /// Where dead letters go (KIP-1034); `None` writes none.
    pub dead_letter_topic: Option<Arc<str>>,
}

impl ErrorHandlers {
    /// Every handler answers `response`.
    pub fn always(response: ErrorResponse) -> Self {
        Self {
            deserialization: Arc::new(move |_, _| response),
            processing: Arc::new(move |_, _, _| response),
            production: Arc::new(move |_, _| match response {
                ErrorResponse::Continue => ProductionResponse::Continue,
                ErrorResponse::Fail => ProductionResponse::Fail,
            }),
            dead_letter_topic: None,
        }
    }
}

impl Default for ErrorHandlers {
    fn default() -> Self {
        Self::always(ErrorResponse::Fail)
    }
}
