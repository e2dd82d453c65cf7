//! A layered layout (after Sugiyama): shapes in columns from left to right, edges between neighbouring columns only.
//!
//! 1. Every shape gets the column behind the last of those it comes from; edges that go back are taken the other way round.
//! 2. An edge over several columns gets a bend in each of them, so that it goes between shapes and not through them.
//! 3. Columns are sorted so that edges cross little, each by the middle of its neighbours, to and fro a few times.
//! 4. Heights follow the neighbours as far as shapes do not overlap.

/// Room between two shapes of a column.
const GAP: f64 = 16.0;
/// Room that an edge takes in a column.
const LANE: f64 = 10.0;
const SWEEPS: usize = 12;

/// What is laid out.
pub(super) struct Plan<'a> {
    /// Width and height of each shape.
    pub sizes: &'a [(f64, f64)],
    /// From, to.
    pub edges: &'a [(usize, usize)],
    /// Shapes that belong into the first column, and into the last.
    pub first: &'a [usize],
    /// See `first`.
    pub last: &'a [usize],
    /// Room between columns.
    pub column_gap: f64,
}

/// Where everything is.
pub(super) struct Placed {
    /// The middle of each shape.
    pub centers: Vec<(f64, f64)>,
    /// Points that each edge passes between its ends, from its start to its end.
    pub bends: Vec<Vec<(f64, f64)>>,
    /// Width and height of the whole.
    pub size: (f64, f64),
}

pub(super) fn place(plan: &Plan<'_>) -> Placed {
    let columns = columns(plan);
    let count = columns.iter().map(|column| column + 1).max().unwrap_or(0);
    // Shapes first, then the bends of long edges as shapes of their own.
    let mut sizes = plan.sizes.to_vec();
    let mut column_of = columns.clone();
    let mut links: Vec<(usize, usize)> = Vec::new();
    let mut bend_ids: Vec<Vec<usize>> = Vec::new();
    for (from, to) in plan.edges {
        let backwards = columns[*from] > columns[*to];
        let (left, right) = if backwards { (*to, *from) } else { (*from, *to) };
        let mut ids = Vec::new();
        let mut at = left;
        for column in columns[left] + 1..columns[right] {
            sizes.push((0.0, LANE));
            column_of.push(column);
            let bend = sizes.len() - 1;
            links.push((at, bend));
            ids.push(bend);
            at = bend;
        }
        links.push((at, right));
        if backwards {
            ids.reverse();
        }
        bend_ids.push(ids);
    }
    let mut order: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (id, column) in column_of.iter().enumerate() {
        order[*column].push(id);
    }
    let neighbours = Neighbours::new(sizes.len(), &links);
    sort(&mut order, &neighbours);
    let ys = heights(&order, &sizes, &neighbours);

    let mut x = 0.0;
    let mut middle = vec![0.0; count];
    for (column, ids) in order.iter().enumerate() {
        let width = ids.iter().map(|id| sizes[*id].0).fold(0.0, f64::max);
        middle[column] = x + width / 2.0;
        x += width + plan.column_gap;
    }
    let top = ids_min(&order, |id| ys[id] - sizes[id].1 / 2.0);
    let bottom = ids_max(&order, |id| ys[id] + sizes[id].1 / 2.0);
    let at = |id: usize| (middle[column_of[id]], ys[id] - top);
    Placed {
        centers: (0..plan.sizes.len()).map(at).collect(),
        bends: bend_ids.into_iter().map(|ids| ids.into_iter().map(at).collect()).collect(),
        size: ((x - plan.column_gap).max(0.0), (bottom - top).max(0.0)),
    }
}

fn ids_min(order: &[Vec<usize>], value: impl Fn(usize) -> f64) -> f64 {
    let least = order.iter().flatten().map(|id| value(*id)).fold(f64::INFINITY, f64::min);
    if least.is_finite() { least } else { 0.0 }
}

fn ids_max(order: &[Vec<usize>], value: impl Fn(usize) -> f64) -> f64 {
    -ids_min(order, |id| -value(id))
}

/// The column of each shape.
fn columns(plan: &Plan<'_>) -> Vec<usize> {
    let count = plan.sizes.len();
    let forward = forward_edges(count, plan.edges);
    let first_inner = usize::from(!plan.first.is_empty());
    let mut column: Vec<usize> =
        (0..count).map(|id| if plan.first.contains(&id) { 0 } else { first_inner }).collect();
    // Longest path; as many rounds as shapes are enough, because there are no cycles any more.
    for _ in 0..count {
        let mut moved = false;
        for (from, to) in &forward {
            if column[*to] <= column[*from] {
                column[*to] = column[*from] + 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    // What nothing leads to stands right before what it leads to.
    for id in (0..count).filter(|id| !plan.first.contains(id)) {
        let leads_to = forward.iter().filter(|(from, _)| *from == id).map(|(_, to)| column[*to]).min();
        if let Some(nearest) = leads_to
            && !forward.iter().any(|(_, to)| *to == id)
        {
            column[id] = nearest - 1;
        }
    }
    if !plan.last.is_empty() {
        let inner =
            (0..count).filter(|id| !plan.last.contains(id)).map(|id| column[id] + 1).max().unwrap_or(0);
        plan.last.iter().for_each(|id| column[*id] = inner);
    }
    column
}

/// Edges, with those that close a cycle turned round.
fn forward_edges(count: usize, edges: &[(usize, usize)]) -> Vec<(usize, usize)> {
    fn visit(at: usize, edges: &[(usize, usize)], state: &mut [u8], back: &mut Vec<(usize, usize)>) {
        state[at] = 1;
        for (from, to) in edges.iter().filter(|(from, _)| *from == at) {
            match state[*to] {
                0 => visit(*to, edges, state, back),
                1 => back.push((*from, *to)),
                _ => {}
            }
        }
        state[at] = 2;
    }
    let mut state = vec![0_u8; count];
    let mut back = Vec::new();
    for id in 0..count {
        if state[id] == 0 {
            visit(id, edges, &mut state, &mut back);
        }
    }
    let turned = |edge: &(usize, usize)| if back.contains(edge) { (edge.1, edge.0) } else { *edge };
    edges.iter().map(turned).filter(|(from, to)| from != to).collect()
}

struct Neighbours {
    left: Vec<Vec<usize>>,
    right: Vec<Vec<usize>>,
}

impl Neighbours {
    fn new(count: usize, links: &[(usize, usize)]) -> Self {
        let (mut left, mut right) = (vec![Vec::new(); count], vec![Vec::new(); count]);
        for (from, to) in links {
            right[*from].push(*to);
            left[*to].push(*from);
        }
        Self { left, right }
    }
}

fn sort(order: &mut [Vec<usize>], neighbours: &Neighbours) {
    let mut place = vec![0.0; neighbours.left.len()];
    let note = |ids: &[usize], place: &mut [f64]| {
        ids.iter().enumerate().for_each(|(at, id)| place[*id] = (at as f64 + 0.5) / ids.len() as f64);
    };
    order.iter().for_each(|ids| note(ids, &mut place));
    for sweep in 0..SWEEPS {
        let rightwards = sweep % 2 == 0;
        let columns: Vec<usize> =
            if rightwards { (0..order.len()).collect() } else { (0..order.len()).rev().collect() };
        for column in columns {
            let sides = if rightwards { &neighbours.left } else { &neighbours.right };
            let middle = |id: usize| match sides[id].len() {
                0 => place[id],
                count => sides[id].iter().map(|other| place[*other]).sum::<f64>() / count as f64,
            };
            let mut ids: Vec<(f64, usize)> = order[column].iter().map(|id| (middle(*id), *id)).collect();
            ids.sort_by(|a, b| a.0.total_cmp(&b.0));
            order[column] = ids.into_iter().map(|(_, id)| id).collect();
            note(&order[column], &mut place);
        }
    }
}

/// The middle of each shape, from the top.
fn heights(order: &[Vec<usize>], sizes: &[(f64, f64)], neighbours: &Neighbours) -> Vec<f64> {
    let mut ys = vec![0.0; sizes.len()];
    for ids in order {
        let mut y = 0.0;
        for id in ids {
            ys[*id] = y + sizes[*id].1 / 2.0;
            y += sizes[*id].1 + GAP;
        }
    }
    for round in 0..SWEEPS * 4 {
        for ids in order {
            let wanted = |id: usize| {
                let sides: &[&Vec<usize>] = match round % 3 {
                    0 => &[&neighbours.left[id]],
                    1 => &[&neighbours.right[id]],
                    _ => &[&neighbours.left[id], &neighbours.right[id]],
                };
                let all = sides.iter().flat_map(|side| side.iter());
                let (count, sum) = all.fold((0, 0.0), |(count, sum), other| (count + 1, sum + ys[*other]));
                if count == 0 { ys[id] } else { sum / f64::from(count) }
            };
            let wishes: Vec<f64> = ids.iter().map(|id| wanted(*id)).collect();
            let apart = |a: usize, b: usize| (sizes[ids[a]].1 + sizes[ids[b]].1) / 2.0 + GAP;
            let mut down = wishes.clone();
            for at in 1..down.len() {
                down[at] = down[at].max(down[at - 1] + apart(at - 1, at));
            }
            let mut up = wishes;
            for at in (0..up.len().saturating_sub(1)).rev() {
                up[at] = up[at].min(up[at + 1] - apart(at, at + 1));
            }
            // Both keep the distances, and so does what is between them.
            for (at, id) in ids.iter().enumerate() {
                ys[*id] = f64::midpoint(down[at], up[at]);
            }
        }
    }
    ys
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shapes_never_overlap_and_edges_have_a_way(
            count in 1..14_usize,
            edges in proptest::collection::vec((0..14_usize, 0..14_usize), 0..30),
        ) {
            let edges: Vec<_> = edges.into_iter().filter(|(a, b)| *a < count && *b < count && a != b).collect();
            let sizes: Vec<_> = (0..count).map(|id| (40.0 + id as f64, 20.0 + (id % 3) as f64 * 15.0)).collect();
            let placed = place(&Plan { sizes: &sizes, edges: &edges, first: &[], last: &[], column_gap: 30.0 });
            for a in 0..count {
                for b in 0..a {
                    let apart = |axis: fn((f64, f64)) -> f64| {
                        (axis(placed.centers[a]) - axis(placed.centers[b])).abs()
                            >= (axis(sizes[a]) + axis(sizes[b])) / 2.0 - 1e-6
                    };
                    prop_assert!(apart(|p| p.0) || apart(|p| p.1), "{a} and {b}");
                }
                let (x, y) = placed.centers[a];
                prop_assert!(x >= 0.0 && y >= 0.0 && x <= placed.size.0 && y <= placed.size.1);
            }
            prop_assert_eq!(placed.bends.len(), edges.len());
        }
    }

    #[test]
    fn a_chain_goes_from_left_to_right_on_one_line() {
        let sizes = [(50.0, 20.0); 3];
        let placed =
            place(&Plan { sizes: &sizes, edges: &[(2, 0), (0, 1)], first: &[], last: &[], column_gap: 10.0 });
        let [a, b, c] = [placed.centers[2], placed.centers[0], placed.centers[1]];
        assert!(a.0 < b.0 && b.0 < c.0);
        assert!((a.1 - b.1).abs() < 1.0 && (b.1 - c.1).abs() < 1.0, "{a:?} {b:?} {c:?}");
        assert_eq!(placed.size.0, 170.0);
    }
}
