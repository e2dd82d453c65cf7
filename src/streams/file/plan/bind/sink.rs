//! Binds sinks: key and headers, and that one topic has one shape and is no input of the file.

use super::{Binder, table::with_aliases};
use crate::streams::file::{
    diagnostic::Diagnostic,
    expression::{Scope, Typed},
    parse::{Body, Format, To},
    plan::{Operator, PlanNode, SinkPlan},
    reader::Text,
};

impl<'a> Binder<'a> {
    pub(super) fn sink(&mut self, name: &'a Text, node: &PlanNode, to: &'a To) -> Option<SinkPlan> {
        let scope = match &node.operator {
            Operator::Table(table) => {
                with_aliases(&node.columns, table.windows.is_some(), table.group_by.len())
            }
            _ => Scope::of(Some(&node.name), &node.columns),
        };
        let key = to.key.as_ref().map(|key| self.checked(key, &scope));
        let headers: Vec<Option<(String, Typed)>> = to
            .headers
            .iter()
            .map(|(name, text)| self.checked(text, &scope).map(|typed| (name.value.clone(), typed)))
            .collect();
        for input in &self.file.nodes {
            if let Body::Source(source) = &input.body
                && source.topic.value == to.topic.value
            {
                let message = format!(
                    "`{}` writes topic `{}`, which `{}` reads",
                    name.value, to.topic.value, input.name.value
                );
                self.diagnostics.push(
                    Diagnostic::new(to.topic.span.clone(), message)
                        .help("that is a cycle: read the node instead of its topic"),
                );
                return None;
            }
        }
        if to.format == Format::Raw && node.columns.len() != 1 {
            let message = format!(
                "a raw topic has one value per record, `{}` has {} columns",
                name.value,
                node.columns.len()
            );
            self.diagnostics.push(
                Diagnostic::new(to.topic.span.clone(), message)
                    .help("select one column in a stream, and write that"),
            );
        }
        let shape: Vec<String> = node
            .columns
            .iter()
            .map(|column| format!("{} {}", column.name, column.column_type))
            .chain([format!("key {}", key.is_some())])
            .chain((to.format == Format::Raw).then(|| "raw".to_owned()))
            .collect();
        let shape = shape.join(", ");
        match self.topics.get(to.topic.value.as_str()) {
            Some((other, known)) if *known != shape => {
                let message = format!(
                    "`{}` and `{other}` write topic `{}` with other shapes",
                    name.value, to.topic.value
                );
                let help = format!("`{other}` writes ({known}), this node ({shape})");
                self.diagnostics.push(Diagnostic::new(to.topic.span.clone(), message).help(help));
            }
            Some(_) => {}
            None => {
                self.topics.insert(&to.topic.value, (&name.value, shape));
            }
        }
        let key = match key {
            Some(key) => Some(key?),
            None => None,
        };
        Some(SinkPlan {
            topic: to.topic.value.clone(),
            format: to.format,
            key,
            headers: headers.into_iter().collect::<Option<_>>()?,
        })
    }
}
