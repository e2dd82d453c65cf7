//! A binary heap that orders ties exactly as `java.util.PriorityQueue` does.
//!
//! Which of several records with equal timestamps comes first follows from how Java's heap moves elements
//! (conformance README §6.1), so the sift operations are the same, step for step.

/// A min-heap by the key given with each element.
pub(super) struct JavaPriorityQueue<T>(Vec<(i64, T)>);

impl<T> JavaPriorityQueue<T> {
    /// An empty heap.
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// Elements held.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest element and its key.
    pub(super) fn peek(&self) -> Option<(i64, &T)> {
        self.0.first().map(|(key, value)| (*key, value))
    }

    /// Adds at the end and sifts up while strictly smaller than the parent.
    pub(super) fn offer(&mut self, key: i64, value: T) {
        self.0.push((key, value));
        let mut at = self.0.len() - 1;
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.0[at].0 >= self.0[parent].0 {
                break;
            }
            self.0.swap(at, parent);
            at = parent;
        }
    }

    /// Takes the root; the *last* element takes its place and sifts down past strictly smaller children.
    pub(super) fn poll(&mut self) -> Option<(i64, T)> {
        if self.0.is_empty() {
            return None;
        }
        let root = self.0.swap_remove(0);
        let len = self.0.len();
        let mut at = 0;
        while at < len / 2 {
            let left = 2 * at + 1;
            let right = left + 1;
            let child = if right < len && self.0[left].0 > self.0[right].0 { right } else { left };
            if self.0[at].0 <= self.0[child].0 {
                break;
            }
            self.0.swap(at, child);
            at = child;
        }
        Some(root)
    }

    /// Empties the heap.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With three equal heads, re-offered after each take, the first and the third alternate.
    #[test]
    fn three_way_ties_alternate_between_first_and_third() {
        let mut heap = JavaPriorityQueue::new();
        for name in ["a", "b", "c"] {
            heap.offer(5, name);
        }
        let mut order = Vec::new();
        for _ in 0..5 {
            let (key, name) = heap.poll().expect("never empty");
            order.push(name);
            heap.offer(key, name);
        }
        assert_eq!(order, ["a", "c", "a", "c", "a"]);
    }
}
