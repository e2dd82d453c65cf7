//! [`JavaTreeSet`]: a red-black tree that places an item as `java.util.TreeSet` does.
//!
//! Any sorted list would do if the order of two items were fixed. Kafka's description compares nodes by sizes that still grow while
//! it adds them; where an item lands then depends on which items the tree happens to compare it with.

use std::cmp::Ordering;

struct Entry<T> {
    item: T,
    red: bool,
    parent: Option<usize>,
    /// Left and right.
    children: [Option<usize>; 2],
}

/// See the module's documentation.
pub(super) struct JavaTreeSet<T> {
    entries: Vec<Entry<T>>,
    root: Option<usize>,
}

const LEFT: usize = 0;
const RIGHT: usize = 1;

impl<T: Copy> JavaTreeSet<T> {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), root: None }
    }

    /// Adds an item, unless one is met on the way that compares as equal.
    pub(super) fn insert(&mut self, item: T, compare: impl Fn(T, T) -> Ordering) {
        let (mut parent, mut side, mut at) = (None, LEFT, self.root);
        while let Some(entry) = at {
            side = match compare(item, self.entries[entry].item) {
                Ordering::Less => LEFT,
                Ordering::Greater => RIGHT,
                Ordering::Equal => return,
            };
            parent = Some(entry);
            at = self.entries[entry].children[side];
        }
        let new = self.entries.len();
        self.entries.push(Entry { item, red: true, parent, children: [None; 2] });
        match parent {
            Some(parent) => self.entries[parent].children[side] = Some(new),
            None => self.root = Some(new),
        }
        self.balance(new);
    }

    /// The items from left to right.
    pub(super) fn items(&self) -> Vec<T> {
        fn walk<T: Copy>(set: &JavaTreeSet<T>, at: Option<usize>, out: &mut Vec<T>) {
            let Some(entry) = at.map(|at| &set.entries[at]) else { return };
            walk(set, entry.children[LEFT], out);
            out.push(entry.item);
            walk(set, entry.children[RIGHT], out);
        }
        let mut out = Vec::with_capacity(self.entries.len());
        walk(self, self.root, &mut out);
        out
    }

    fn parent(&self, at: usize) -> Option<usize> {
        self.entries[at].parent
    }

    /// No red entry may stand below a red one: recolours, or turns the tree, from a new red entry upwards.
    fn balance(&mut self, mut at: usize) {
        while let Some(parent) = self.parent(at).filter(|parent| self.entries[*parent].red) {
            // A red entry is never the root, so it has a parent.
            let Some(above) = self.parent(parent) else { break };
            let side = self.side(parent);
            match self.entries[above].children[1 - side].filter(|uncle| self.entries[*uncle].red) {
                Some(uncle) => {
                    self.entries[parent].red = false;
                    self.entries[uncle].red = false;
                    self.entries[above].red = true;
                    at = above;
                }
                None => {
                    if self.side(at) != side {
                        at = parent;
                        self.turn(at, side);
                    }
                    let parent = self.parent(at).unwrap_or(at);
                    self.entries[parent].red = false;
                    self.entries[above].red = true;
                    self.turn(above, 1 - side);
                }
            }
        }
        if let Some(root) = self.root {
            self.entries[root].red = false;
        }
    }

    /// On which side of its parent an entry hangs.
    fn side(&self, at: usize) -> usize {
        let right = self.parent(at).is_some_and(|parent| self.entries[parent].children[RIGHT] == Some(at));
        usize::from(right)
    }

    /// Moves an entry down to `side`; its child of the other side takes its place.
    fn turn(&mut self, at: usize, side: usize) {
        let Some(up) = self.entries[at].children[1 - side] else { return };
        let moved = self.entries[up].children[side];
        self.entries[at].children[1 - side] = moved;
        if let Some(moved) = moved {
            self.entries[moved].parent = Some(at);
        }
        let (parent, place) = (self.parent(at), self.side(at));
        self.entries[up].parent = parent;
        match parent {
            Some(parent) => self.entries[parent].children[place] = Some(up),
            None => self.root = Some(up),
        }
        self.entries[up].children[side] = Some(at);
        self.entries[at].parent = Some(up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_order_is_kept() {
        let mut set = JavaTreeSet::new();
        for item in [5, 1, 9, 3, 7, 2, 8, 4, 6, 5] {
            set.insert(item, |a: i32, b| a.cmp(&b));
        }
        assert_eq!(set.items(), (1..=9).collect::<Vec<_>>());
        let depth = |set: &JavaTreeSet<i32>, mut at: usize| {
            let mut depth = 0;
            while let Some(parent) = set.parent(at) {
                (at, depth) = (parent, depth + 1);
            }
            depth
        };
        assert!((0..set.entries.len()).all(|at| depth(&set, at) <= 3), "the tree stays balanced");
    }
}
