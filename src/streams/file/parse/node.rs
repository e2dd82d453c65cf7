//! The smaller sections: dedupe, stream, merge, split, repartition, processor; and `to`, which all nodes share.

use super::{Body, FROM, To, check_topic_name, format, positive, state_version};
use crate::streams::file::{
    diagnostic::Diagnostic,
    reader::{Section, Spanned},
};

/// `[dedupe.…]`
pub(super) fn read_dedupe(section: &Section<'_>) -> Option<Body> {
    let from = section.required_text("from", FROM);
    let by = section.required_text("by", "write `by = \"column\"`: the id that repeats have in common");
    let within = section.duration("within");
    if within.is_none() && !section.has("within") {
        section.missing(
            "within",
            "write `within = \"1h\"`: how far apart in event time repeats may be; ids are forgotten after it",
        );
    }
    let within = positive(section, "within", within);
    let within = within.unwrap_or_else(|| Spanned::new(1, section.span.clone()));
    let state_version = state_version(section);
    Some(Body::Dedupe { from: from?, by: by?, within, state_version })
}

/// `[stream.…]`
pub(super) fn read_stream(section: &Section<'_>) -> Option<Body> {
    let from = section.required_text("from", FROM);
    let (filter, select) = (section.text("where"), section.map("select"));
    Some(Body::Stream { from: from?, filter, select })
}

/// `[merge.…]`
pub(super) fn read_merge(section: &Section<'_>) -> Option<Body> {
    let from = section.texts("from");
    match &from {
        None if !section.has("from") => section.missing("from", "write `from = [\"a\", \"b\"]`"),
        Some(list) if list.len() < 2 => section.report(
            Diagnostic::new(section.key_span("from"), "a merge has two inputs or more")
                .help("for one input use a stream"),
        ),
        _ => {}
    }
    // Without an input there is nothing to go on with.
    Some(Body::Merge { from: from.filter(|list| !list.is_empty())? })
}

/// `[split.…]`
pub(super) fn read_split(section: &Section<'_>) -> Option<Body> {
    let from = section.required_text("from", FROM);
    let into = section.map("into");
    if into.as_ref().is_none_or(Vec::is_empty) && (into.is_some() || !section.has("into")) {
        section.missing(
            "into",
            "write `into = { big = \"amount > 100\" }`: a name for what meets each condition; the first that holds takes it",
        );
    }
    let rest = section.text("rest");
    Some(Body::Split { from: from?, into: into?, rest })
}

/// `[repartition.…]`
pub(super) fn read_repartition(section: &Section<'_>) -> Option<Body> {
    let from = section.required_text("from", FROM);
    let by = section.texts("by");
    if by.as_ref().is_none_or(Vec::is_empty) {
        section.missing("by", "write `by = [\"column\"]`: the key that decides the partition");
    }
    Some(Body::Repartition { from: from?, by: by.filter(|by| !by.is_empty())? })
}

/// `[processor.…]`
pub(super) fn read_processor(section: &Section<'_>) -> Option<Body> {
    let from = section.required_text("from", FROM);
    let uses =
        section.required_text("uses", "write `uses = \"name\"`: the name the processor is registered under");
    let stores = section.texts("stores").unwrap_or_default();
    let fields = section.map("fields");
    Some(Body::Processor { from: from?, uses: uses?, stores, fields })
}

/// `to = { … }`
pub(super) fn read_to(section: &Section<'_>) -> Option<To> {
    let inner = section.section("to")?;
    let topic = inner.required_text("topic", "write `to = { topic = \"…\", key = \"…\" }`");
    if let Some(topic) = &topic {
        check_topic_name(section, topic, "a topic");
    }
    let (key, headers) = (inner.text("key"), inner.map("headers").unwrap_or_default());
    let format = format(&inner);
    inner.finish();
    Some(To { topic: topic?, key, headers, format })
}
