//! "Did you mean": the nearest of the names that would have been right.
//!
//! Used by every message that refuses a name. What must always hold: a suggestion is one of the candidates.

/// The candidate nearest to what was written, if one is near: another case, one slip, or a third of the letters.
pub(crate) fn did_you_mean<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let lower = written.to_lowercase();
    let allowed = (written.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let other = candidate.to_lowercase();
            // Snake case and camel case of one name are one slip, whatever its length.
            let distance =
                if other.replace('_', "") == lower.replace('_', "") { 0 } else { distance(&lower, &other) };
            (distance <= allowed && distance < candidate.chars().count()).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits between two words, a swap of neighbours counting once (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = last;
        last = row;
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_was_probably_meant() {
        let names = ["customerId", "userId", "issuedAt", "amount"];
        let cases = [
            ("custmerId", Some("customerId")),
            ("customer_id", Some("customerId")),
            ("CustomerID", Some("customerId")),
            ("usreId", Some("userId")),
            ("amonut", Some("amount")),
            ("price", None),
            ("x", None),
        ];
        for (written, expected) in cases {
            assert_eq!(did_you_mean(written, names), expected, "{written}");
        }
    }
}
