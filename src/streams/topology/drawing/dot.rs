//! A [`Picture`] in Graphviz' language.

use std::fmt::Write;

use super::{Kind, Picture, Shape};

pub(super) fn write(picture: &Picture) -> String {
    let mut text = String::from(
        "digraph topology {\n  rankdir = LR;\n  fontname = \"Helvetica\";\n  node [fontname = \"Helvetica\", fontsize = 11, shape = box, style = \"rounded,filled\", fillcolor = white];\n",
    );
    for (number, group) in picture.groups.iter().enumerate() {
        let _ = writeln!(
            text,
            "  subgraph cluster_{number} {{\n    label = {};\n    style = \"rounded,filled\";\n    color = \"#c7ccd6\";\n    fillcolor = \"#f4f6f9\";",
            quoted(&group.title)
        );
        for (id, shape) in picture.shapes.iter().enumerate().filter(|(_, shape)| shape.group == Some(number))
        {
            let _ = writeln!(text, "    n{id} [label = {}{}];", label(shape), look(shape.kind));
        }
        text.push_str("  }\n");
    }
    for (id, shape) in picture.shapes.iter().enumerate().filter(|(_, shape)| shape.group.is_none()) {
        let _ = writeln!(text, "  n{id} [label = {}{}];", label(shape), look(shape.kind));
    }
    for (from, to) in &picture.edges {
        let _ = writeln!(text, "  n{from} -> n{to};");
    }
    text.push_str("}\n");
    text
}

fn label(shape: &Shape) -> String {
    let mut lines = vec![shape.label.clone()];
    lines.extend(shape.stores.iter().map(|store| format!("[{store}]")));
    quoted(&lines.join("\n"))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn look(kind: Kind) -> &'static str {
    match kind {
        Kind::Topic => ", shape = cds, style = filled, fillcolor = \"#d8e8fb\"",
        Kind::Repartition => ", shape = cds, style = \"filled,dashed\", fillcolor = \"#fdeacb\"",
        Kind::Source => ", fillcolor = \"#e9f2fd\"",
        Kind::Processor => "",
    }
}
