//! A [`Picture`] as SVG: each box laid out by itself, then boxes and topics among each other.
//!
//! An edge that leaves a box leaves it through a port at its border, for which the inside keeps a lane free; so no edge crosses a shape.

use std::fmt::Write;

use super::{Kind, Picture, Shape, layered};

const FONT: &str = "font-family=\"Helvetica, Arial, sans-serif\"";
const LABEL_SIZE: f64 = 12.0;
const STORE_SIZE: f64 = 11.0;
/// Mean width of a letter, as a part of its size. Wide enough for capitals and underscores.
const LETTER: f64 = 0.58;
const LINE: f64 = 17.0;
const PADDING: f64 = 11.0;
/// Around the inside of a box.
const INSET: f64 = 18.0;
const TITLE: f64 = 24.0;
const MARGIN: f64 = 24.0;
const LEGEND: f64 = 46.0;

type Point = (f64, f64);

/// A box, laid out: where its shapes and ports are, from its upper left corner.
struct Inside {
    shapes: Vec<usize>,
    layout: layered::Placed,
    /// Edges of the picture that are drawn inside, in the order of the layout's.
    edges: Vec<InnerEdge>,
    size: Point,
}

enum InnerEdge {
    /// Between two shapes.
    Whole(usize, usize),
    /// From the border to a shape, for an edge of the picture.
    In(usize),
    /// From a shape to the border.
    Out(usize),
}

pub(super) fn write(picture: &Picture) -> String {
    let insides: Vec<Inside> = (0..picture.groups.len()).map(|group| inside(picture, group)).collect();
    // Boxes first, then topics.
    let topics: Vec<usize> =
        (0..picture.shapes.len()).filter(|id| picture.shapes[*id].group.is_none()).collect();
    let mut sizes: Vec<Point> = insides.iter().map(|inside| inside.size).collect();
    sizes.extend(topics.iter().map(|id| size(&picture.shapes[*id])));
    let outer = |shape: usize| match picture.shapes[shape].group {
        Some(group) => group,
        None => insides.len() + topics.iter().position(|topic| *topic == shape).unwrap_or_default(),
    };
    let crossing: Vec<usize> = (0..picture.edges.len())
        .filter(|edge| outer(picture.edges[*edge].0) != outer(picture.edges[*edge].1))
        .collect();
    let edges: Vec<(usize, usize)> =
        crossing.iter().map(|edge| (outer(picture.edges[*edge].0), outer(picture.edges[*edge].1))).collect();
    let whole = layered::place(&layered::Plan {
        sizes: &sizes,
        edges: &edges,
        first: &[],
        last: &[],
        column_gap: 70.0,
    });

    let mut canvas = Canvas::default();
    let corner = |outer: usize| {
        let (x, y) = whole.centers[outer];
        (MARGIN + x - sizes[outer].0 / 2.0, MARGIN + y - sizes[outer].1 / 2.0)
    };
    for (group, inside) in insides.iter().enumerate() {
        canvas.group(corner(group), inside.size, &picture.groups[group].title);
    }
    // Edges below shapes, so that an arrow ends at a border.
    let mut from_shape: Vec<Vec<Point>> = vec![Vec::new(); picture.edges.len()];
    let mut to_shape: Vec<Vec<Point>> = vec![Vec::new(); picture.edges.len()];
    for (group, inside) in insides.iter().enumerate() {
        let (x, y) = corner(group);
        let at = |point: Point| (x + INSET + point.0, y + TITLE + INSET + point.1);
        let place = |shape: usize| inside.shapes.iter().position(|id| *id == shape).unwrap_or_default();
        let center = |shape: usize| at(inside.layout.centers[place(shape)]);
        for (number, edge) in inside.edges.iter().enumerate() {
            let bends = inside.layout.bends[number].iter().map(|bend| at(*bend));
            let port =
                || at(inside.layout.centers[inside.shapes.len() + number_of_port(&inside.edges, number)]);
            match edge {
                InnerEdge::Whole(from, to) => {
                    let mut way = vec![right(center(*from), &picture.shapes[*from])];
                    way.extend(bends);
                    way.push(left(center(*to), &picture.shapes[*to]));
                    canvas.edge(&way);
                }
                InnerEdge::In(edge) => {
                    let to = picture.edges[*edge].1;
                    to_shape[*edge] = std::iter::once((x, port().1)).chain(bends).collect();
                    to_shape[*edge].push(left(center(to), &picture.shapes[to]));
                }
                InnerEdge::Out(edge) => {
                    let from = picture.edges[*edge].0;
                    from_shape[*edge] =
                        std::iter::once(right(center(from), &picture.shapes[from])).chain(bends).collect();
                    from_shape[*edge].push((x + inside.size.0, port().1));
                }
            }
        }
    }
    for (number, edge) in crossing.iter().enumerate() {
        let (from, to) = picture.edges[*edge];
        let topic = |shape: usize| {
            let (x, y) = whole.centers[outer(shape)];
            (MARGIN + x, MARGIN + y)
        };
        let mut way = std::mem::take(&mut from_shape[*edge]);
        if way.is_empty() {
            way.push(right(topic(from), &picture.shapes[from]));
        }
        way.extend(whole.bends[number].iter().map(|(x, y)| (MARGIN + x, MARGIN + y)));
        let mut rest = std::mem::take(&mut to_shape[*edge]);
        if rest.is_empty() {
            rest.push(left(topic(to), &picture.shapes[to]));
        }
        way.extend(rest);
        canvas.edge(&way);
    }
    for (group, inside) in insides.iter().enumerate() {
        let (x, y) = corner(group);
        for (place, id) in inside.shapes.iter().enumerate() {
            let (dx, dy) = inside.layout.centers[place];
            canvas.shape((x + INSET + dx, y + TITLE + INSET + dy), &picture.shapes[*id]);
        }
    }
    for (place, id) in topics.iter().enumerate() {
        let (x, y) = whole.centers[insides.len() + place];
        canvas.shape((MARGIN + x, MARGIN + y), &picture.shapes[*id]);
    }
    canvas.finish(whole.size)
}

/// Ports stand behind the shapes in the layout, in the order of their edges.
fn number_of_port(edges: &[InnerEdge], number: usize) -> usize {
    edges[..number].iter().filter(|edge| !matches!(edge, InnerEdge::Whole(..))).count()
}

fn inside(picture: &Picture, group: usize) -> Inside {
    let shapes: Vec<usize> =
        (0..picture.shapes.len()).filter(|id| picture.shapes[*id].group == Some(group)).collect();
    let place = |shape: usize| shapes.iter().position(|id| *id == shape);
    let mut sizes: Vec<Point> = shapes.iter().map(|id| size(&picture.shapes[*id])).collect();
    let (mut edges, mut links) = (Vec::new(), Vec::new());
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for (number, (from, to)) in picture.edges.iter().enumerate() {
        let port = sizes.len();
        match (place(*from), place(*to)) {
            (Some(a), Some(b)) => {
                edges.push(InnerEdge::Whole(*from, *to));
                links.push((a, b));
            }
            (None, Some(b)) => {
                edges.push(InnerEdge::In(number));
                links.push((port, b));
                first.push(port);
                sizes.push((0.0, 6.0));
            }
            (Some(a), None) => {
                edges.push(InnerEdge::Out(number));
                links.push((a, port));
                last.push(port);
                sizes.push((0.0, 6.0));
            }
            (None, None) => {}
        }
    }
    let layout = layered::place(&layered::Plan {
        sizes: &sizes,
        edges: &links,
        first: &first,
        last: &last,
        column_gap: 34.0,
    });
    let size = (layout.size.0 + 2.0 * INSET, layout.size.1 + 2.0 * INSET + TITLE);
    Inside { shapes, layout, edges, size }
}

fn width_of(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * LETTER
}

fn size(shape: &Shape) -> Point {
    let stores = shape.stores.iter().map(|store| width_of(store, STORE_SIZE) + 20.0);
    let width = stores.fold(width_of(&shape.label, LABEL_SIZE), f64::max);
    (width + 2.0 * PADDING, LINE * (1.0 + shape.stores.len() as f64) + 10.0)
}

fn right(center: Point, shape: &Shape) -> Point {
    (center.0 + size(shape).0 / 2.0, center.1)
}

fn left(center: Point, shape: &Shape) -> Point {
    (center.0 - size(shape).0 / 2.0, center.1)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[derive(Default)]
struct Canvas(String);

impl Canvas {
    fn group(&mut self, (x, y): Point, (width, height): Point, title: &str) {
        let _ = writeln!(
            self.0,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"10\" fill=\"#f4f6f9\" stroke=\"#c7ccd6\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" {FONT} font-size=\"11\" fill=\"#6a7282\">{}</text>",
            x + 14.0,
            y + 18.0,
            escaped(title)
        );
    }

    fn shape(&mut self, center: Point, shape: &Shape) {
        let (width, height) = size(shape);
        let (x, y) = (center.0 - width / 2.0, center.1 - height / 2.0);
        let (fill, stroke, more) = match shape.kind {
            Kind::Topic => ("#d8e8fb", "#4a7fc1", "rx=\"2\""),
            Kind::Repartition => ("#fdeacb", "#c98a1b", "rx=\"2\" stroke-dasharray=\"5 3\""),
            Kind::Source => ("#ffffff", "#4a7fc1", "rx=\"13\""),
            Kind::Processor => ("#ffffff", "#6a7282", "rx=\"5\""),
        };
        let _ = writeln!(
            self.0,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\" stroke=\"{stroke}\" {more}/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" {FONT} font-size=\"{LABEL_SIZE}\" text-anchor=\"middle\" fill=\"#1d2433\">{}</text>",
            center.0,
            y + LINE,
            escaped(&shape.label)
        );
        for (number, store) in shape.stores.iter().enumerate() {
            let line = y + LINE * (number as f64 + 2.0);
            let text = width_of(store, STORE_SIZE);
            let start = center.0 - (text + 16.0) / 2.0;
            self.cylinder((start, line - 9.0));
            let _ = writeln!(
                self.0,
                "<text x=\"{:.1}\" y=\"{line:.1}\" {FONT} font-size=\"{STORE_SIZE}\" fill=\"#1f6b3a\">{}</text>",
                start + 16.0,
                escaped(store)
            );
        }
    }

    /// A store: 10 wide, 11 high.
    fn cylinder(&mut self, (x, y): Point) {
        let _ = writeln!(
            self.0,
            "<path d=\"M{x:.1} {:.1} v7 a5 2.2 0 0 0 10 0 v-7\" fill=\"#cdeed8\" stroke=\"#2f8f53\"/>\
             <ellipse cx=\"{:.1}\" cy=\"{:.1}\" rx=\"5\" ry=\"2.2\" fill=\"#e6f7ec\" stroke=\"#2f8f53\"/>",
            y + 2.2,
            x + 5.0,
            y + 2.2
        );
    }

    /// A smooth line through the points that leaves and arrives level.
    fn edge(&mut self, way: &[Point]) {
        let Some((start, rest)) = way.split_first() else { return };
        let mut path = format!("M{:.1} {:.1}", start.0, start.1);
        let mut at = *start;
        for next in rest {
            let bow = ((next.0 - at.0) / 2.0).max(12.0);
            let _ = write!(
                path,
                " C{:.1} {:.1} {:.1} {:.1} {:.1} {:.1}",
                at.0 + bow,
                at.1,
                next.0 - bow,
                next.1,
                next.0,
                next.1
            );
            at = *next;
        }
        let _ = writeln!(
            self.0,
            "<path d=\"{path}\" fill=\"none\" stroke=\"#8690a2\" stroke-width=\"1.2\" marker-end=\"url(#arrow)\"/>"
        );
    }

    fn legend(&mut self, y: f64) {
        let kinds = [
            ("topic", Kind::Topic),
            ("repartition topic", Kind::Repartition),
            ("source", Kind::Source),
            ("processor", Kind::Processor),
        ];
        let mut x = MARGIN;
        for (label, kind) in kinds {
            let shape = Shape { label: label.to_owned(), kind, stores: Vec::new(), group: None };
            let (width, _) = size(&shape);
            self.shape((x + width / 2.0, y), &shape);
            x += width + 14.0;
        }
        self.cylinder((x, y - 6.0));
        let _ = writeln!(
            self.0,
            "<text x=\"{:.1}\" y=\"{:.1}\" {FONT} font-size=\"{STORE_SIZE}\" fill=\"#1f6b3a\">store</text>",
            x + 16.0,
            y + 4.0
        );
    }

    fn finish(mut self, (width, height): Point) -> String {
        self.legend(height + 2.0 * MARGIN + LEGEND / 2.0);
        let (width, height) = ((width + 2.0 * MARGIN).max(520.0), height + 2.0 * MARGIN + LEGEND);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\">\n\
             <defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"7.5\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
             <path d=\"M0 0 L8 4 L0 8 z\" fill=\"#8690a2\"/></marker></defs>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.0
        )
    }
}
