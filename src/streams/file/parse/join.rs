//! `[join.…]`: two sides, what they have in common, and for two streams how far apart partners may be.

use super::{Body, Join, JoinKind, Within, positive, state_version};
use crate::streams::file::{
    diagnostic::Diagnostic,
    reader::{Section, Spanned, Text},
};

/// `[join.…]`
pub(super) fn read(section: &Section<'_>) -> Option<Body> {
    let left = section.required_text("left", "write `left = \"…\"`: the node on the left side");
    let right = section.required_text("right", "write `right = \"…\"`: the node on the right side");
    let (on_left, on_right) = read_on(section)?;
    let within = read_within(section);
    let kind = read_kind(section);
    let (filter, select) = (section.text("where"), section.map("select"));
    if select.as_ref().is_none_or(Vec::is_empty) && (select.is_some() || !section.has("select")) {
        section.missing("select", "write `select = { … }`: the columns of the result, as `node.column`");
    }
    let idle_close = section.section("emit").and_then(|emit| {
        let idle_close = emit.duration("idle_close");
        let idle_close = positive(&emit, "idle_close", idle_close);
        emit.finish();
        idle_close
    });
    let state_version = state_version(section);
    Some(Body::Join(Join {
        left: left?,
        right: right?,
        on_left: on_left?,
        on_right: on_right?,
        within,
        has_within: section.has("within"),
        kind,
        filter,
        select: select?,
        idle_close,
        state_version,
    }))
}

type Sides = (Option<Vec<Text>>, Option<Vec<Text>>);

fn read_on(section: &Section<'_>) -> Option<Sides> {
    // An empty list is as good as none; a wrong shape was reported when it was read.
    let columns = |section: &Section<'_>, key: &'static str, help: &str| {
        let columns = section.texts(key).filter(|columns| !columns.is_empty());
        if columns.is_none() && (!section.has(key) || section.any(key).is_some_and(|item| item.is_array())) {
            section.missing(key, help);
        }
        columns
    };
    if !section.is_table("on") {
        let on = columns(section, "on", "write `on = \"column\"`: what both sides have in common");
        return Some((on.clone(), on));
    }
    let inner = section.section("on")?;
    let [left, right] =
        ["left", "right"].map(|side| columns(&inner, side, "write `on = { left = \"a\", right = \"b\" }`"));
    inner.finish();
    if let (Some(left), Some(right)) = (&left, &right)
        && left.len() != right.len()
    {
        section.report(
            Diagnostic::new(
                section.key_span("on"),
                format!("`on` has {} and {} columns", left.len(), right.len()),
            )
            .help("both sides have the same number: the first equals the first, and so on"),
        );
        return Some((None, None));
    }
    Some((left, right))
}

/// `None` when there is none, or it is not whole, which is reported.
fn read_within(section: &Section<'_>) -> Option<Spanned<Within>> {
    let inner = section.section("within")?;
    let (before, after) = (inner.duration("before"), inner.duration("after"));
    let grace = inner.duration("grace");
    for (key, value) in [("after", &after), ("grace", &grace)] {
        if value.is_none() && !inner.has(key) {
            inner.missing(key, "write `within = { after = \"24h\", grace = \"1m\" }`; there is no default");
        }
    }
    let span = inner.span.clone();
    inner.finish();
    // With something in the place of what is missing, the rest of the node is looked through, too.
    let ms = |duration: Option<Spanned<i64>>, assumed| duration.map_or(assumed, |duration| duration.value);
    Some(Spanned::new(Within { before: ms(before, 0), after: ms(after, 1), grace: ms(grace, 1) }, span))
}

fn read_kind(section: &Section<'_>) -> Spanned<JoinKind> {
    let Some(kind) = section.text("kind") else { return Spanned::new(JoinKind::Inner, section.span.clone()) };
    let read = match kind.value.as_str() {
        "inner" => JoinKind::Inner,
        "left" => JoinKind::Left,
        "outer" => JoinKind::Outer,
        other => {
            section.report(
                Diagnostic::new(kind.span.clone(), format!("`{other}` is no kind of join"))
                    .help("write \"inner\", \"left\" or \"outer\""),
            );
            JoinKind::Inner
        }
    };
    Spanned::new(read, kind.span)
}
