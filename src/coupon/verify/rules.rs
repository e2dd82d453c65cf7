//! The rules: pure functions from facts to findings.
//!
//! Each returns how many things it compared (none: it had nothing to go by) and what it found, as subject and detail.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::facts::{Facts, HistoryRow, UserCouponRow};

/// How many were compared, and what was found.
pub(super) type Verdict = (Option<usize>, Vec<(String, String)>);

/// I1
pub(super) fn within_the_limit(facts: &Facts) -> Verdict {
    let mut findings = Vec::new();
    let mut slots: BTreeMap<i64, HashMap<i64, i64>> = BTreeMap::new();
    for row in &facts.user_coupons {
        let Some(coupon) = facts.coupons.get(&row.coupon_id) else {
            findings.push((
                format!("user coupon {}", row.user_coupon_id),
                format!("its coupon {} does not exist", row.coupon_id),
            ));
            continue;
        };
        if !(1..=coupon.max_issue_count).contains(&row.slot_no) {
            let detail = format!("slot {} is outside 1..={}", row.slot_no, coupon.max_issue_count);
            findings.push((format!("user coupon {}", row.user_coupon_id), detail));
        }
        if let Some(other) = slots.entry(row.coupon_id).or_default().insert(row.slot_no, row.user_coupon_id) {
            let detail =
                format!("slot {} is held by user coupons {other} and {}", row.slot_no, row.user_coupon_id);
            findings.push((format!("coupon {}", row.coupon_id), detail));
        }
    }
    let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
    for row in &facts.user_coupons {
        *counts.entry(row.coupon_id).or_default() += 1;
    }
    for (id, count) in counts {
        if let Some(coupon) = facts.coupons.get(&id)
            && count > coupon.max_issue_count
        {
            findings.push((format!("coupon {id}"), format!("{count} issued of {}", coupon.max_issue_count)));
        }
    }
    (Some(facts.user_coupons.len()), findings)
}

/// I2
pub(super) fn one_per_user(facts: &Facts) -> Verdict {
    let mut holders: HashMap<(i64, i64), i64> = HashMap::new();
    let mut findings = Vec::new();
    for row in &facts.user_coupons {
        if let Some(other) = holders.insert((row.coupon_id, row.user_id), row.user_coupon_id) {
            let detail = format!("holds user coupons {other} and {}", row.user_coupon_id);
            findings.push((format!("coupon {} user {}", row.coupon_id, row.user_id), detail));
        }
    }
    (Some(facts.user_coupons.len()), findings)
}

/// I3
pub(super) fn one_history_and_event_each(facts: &Facts) -> Verdict {
    let mut issued: HashMap<i64, Vec<&HistoryRow>> = HashMap::new();
    for line in facts.history.iter().filter(|line| line.from_status.is_none()) {
        issued.entry(line.user_coupon_id).or_default().push(line);
    }
    let mut events: HashMap<i64, HashSet<&str>> = HashMap::new();
    for event in facts.events("coupon-issued") {
        events.entry(event.user_coupon_id).or_default().insert(&event.event_id);
    }
    let mut findings = Vec::new();
    for row in &facts.user_coupons {
        let subject = || format!("user coupon {}", row.user_coupon_id);
        let lines = issued.get(&row.user_coupon_id).map_or(0, Vec::len);
        if lines != 1 {
            findings.push((subject(), format!("{lines} issued lines in the history, not 1")));
        }
        // Repeats of one event are the relay's right; two different events are not.
        let different = events.get(&row.user_coupon_id).map_or(0, HashSet::len);
        if facts.log.is_some() && different > 1 {
            findings.push((subject(), format!("{different} different issued events")));
        }
    }
    (Some(facts.user_coupons.len()), findings)
}

/// I4
pub(super) fn events_are_in_the_log(facts: &Facts) -> Verdict {
    let Some(log) = &facts.log else { return (None, Vec::new()) };
    let mut findings: Vec<(String, String)> =
        log.unreadable.iter().map(|place| ("log".to_owned(), format!("unreadable record {place}"))).collect();
    let mut committed: HashMap<&str, &HistoryRow> = HashMap::new();
    for line in &facts.history {
        committed.insert(&line.event_id, line);
    }
    let mut seen: HashSet<(&str, &str)> = HashSet::new();
    for (topic, events) in &log.events {
        for event in events {
            let subject = || format!("{topic} event {}", event.event_id);
            let is_first = seen.insert((topic, &event.event_id));
            if event.key != event.user_id.to_string() {
                findings.push((subject(), format!("has the key {} for user {}", event.key, event.user_id)));
            }
            let Some(line) = committed.get(event.event_id.as_str()) else {
                if is_first {
                    findings.push((subject(), "is in the log, and no history line has it".into()));
                }
                continue;
            };
            let is_same = line.topic() == topic
                && (line.user_coupon_id, line.user_id, line.coupon_id)
                    == (event.user_coupon_id, event.user_id, event.coupon_id)
                && event
                    .discount_amount
                    .is_none_or(|amount| line.discount_amount.is_none_or(|own| own == amount));
            if !is_same && is_first {
                findings.push((subject(), "says something else than its history line".into()));
            }
        }
    }
    for line in &facts.history {
        let topic = line.topic();
        if seen.contains(&(topic, line.event_id.as_str())) {
            continue;
        }
        let why = match facts.outbox_waiting.get(&line.event_id) {
            Some(true) => "it is parked in the outbox",
            Some(false) => "it still waits in the outbox",
            None => "and the outbox does not hold it either",
        };
        findings.push((
            format!("user coupon {}", line.user_coupon_id),
            format!("its event {} is not in {topic}: {why}", line.event_id),
        ));
    }
    (Some(facts.history.len()), findings)
}

/// I5
pub(super) fn gate_members_are_rows(facts: &Facts) -> Verdict {
    let Some(gate) = &facts.gate else { return (None, Vec::new()) };
    let mut rows: HashMap<(i64, i64), &UserCouponRow> = HashMap::new();
    for row in &facts.user_coupons {
        rows.insert((row.coupon_id, row.user_id), row);
    }
    let mut findings = Vec::new();
    let mut compared = 0;
    for (coupon, members) in gate {
        for (user, seat) in members {
            compared += 1;
            let subject = format!("coupon {coupon} user {user}");
            match rows.get(&(*coupon, *user)) {
                None => {
                    findings.push((subject, format!("holds slot {} at the gate, and has no row", seat.slot)))
                }
                Some(row) if row.slot_no != seat.slot => {
                    let detail =
                        format!("holds slot {} at the gate, {} in the ledger", seat.slot, row.slot_no);
                    findings.push((subject, detail));
                }
                Some(_) if seat.pending => findings.push((subject, "is still pending at the gate".into())),
                Some(_) => {}
            }
        }
        for row in facts.user_coupons.iter().filter(|row| row.coupon_id == *coupon) {
            if !members.contains_key(&row.user_id) {
                let subject = format!("coupon {coupon} user {}", row.user_id);
                findings.push((subject, "has a row, and is unknown to the gate".into()));
            }
        }
    }
    (Some(compared), findings)
}

/// I6
pub(super) fn used_events_are_uses(facts: &Facts) -> Verdict {
    let mut findings = Vec::new();
    // Uses less taken-back uses, by user coupon.
    let mut active: HashMap<i64, i64> = HashMap::new();
    for line in &facts.history {
        match (line.from_status.as_deref(), line.to_status.as_str()) {
            (Some("ACTIVE"), "USED") => *active.entry(line.user_coupon_id).or_default() += 1,
            (Some("USED"), "ACTIVE") => *active.entry(line.user_coupon_id).or_default() -= 1,
            _ => {}
        }
    }
    for row in &facts.user_coupons {
        let uses = active.get(&row.user_coupon_id).copied().unwrap_or(0);
        let expected = i64::from(row.status == "USED");
        if uses != expected {
            let detail = format!("{uses} active uses in the history, its status is {}", row.status);
            findings.push((format!("user coupon {}", row.user_coupon_id), detail));
        }
    }
    if facts.log.is_some() {
        for topic in ["coupon-used", "coupon-use-cancelled"] {
            let lines = facts.history.iter().filter(|line| line.topic() == topic).count();
            let events: HashSet<&str> =
                facts.events(topic).iter().map(|event| event.event_id.as_str()).collect();
            if events.len() != lines {
                let detail =
                    format!("{} different events in the log, {lines} lines in the history", events.len());
                findings.push((topic.to_owned(), detail));
            }
        }
    }
    (Some(facts.user_coupons.len()), findings)
}

/// I7
pub(super) fn history_gives_tables(facts: &Facts) -> Verdict {
    let mut findings = Vec::new();
    let mut replayed: HashMap<i64, UserCouponRow> = HashMap::new();
    for line in &facts.history {
        let subject = format!("user coupon {}", line.user_coupon_id);
        match (replayed.get_mut(&line.user_coupon_id), &line.from_status) {
            (None, None) if line.seq == 1 => drop(replayed.insert(line.user_coupon_id, first(line))),
            (Some(row), Some(from)) if row.last_seq + 1 == line.seq && row.status == *from => {
                apply(row, line)
            }
            (Some(row), _) => {
                let detail = format!(
                    "line {} ({} to {}) does not follow line {} ({})",
                    line.seq,
                    line.from_status.as_deref().unwrap_or("nothing"),
                    line.to_status,
                    row.last_seq,
                    row.status
                );
                findings.push((subject, detail));
            }
            (None, _) => findings.push((subject, format!("its history begins with line {}", line.seq))),
        }
    }
    for row in &facts.user_coupons {
        let subject = format!("user coupon {}", row.user_coupon_id);
        match replayed.remove(&row.user_coupon_id) {
            None => findings.push((subject, "has no history".into())),
            Some(replay) if replay != *row => findings.push((subject, difference(row, &replay))),
            Some(_) => {}
        }
    }
    let mut orphans: Vec<i64> = replayed.into_keys().collect();
    orphans.sort_unstable();
    findings.extend(
        orphans.into_iter().map(|id| (format!("user coupon {id}"), "has a history, and no row".into())),
    );
    (Some(facts.history.len()), findings)
}

fn first(line: &HistoryRow) -> UserCouponRow {
    UserCouponRow {
        user_coupon_id: line.user_coupon_id,
        coupon_id: line.coupon_id,
        user_id: line.user_id,
        slot_no: line.slot_no,
        status: line.to_status.clone(),
        issued_at: line.at,
        order_id: None,
        order_amount: None,
        discount_amount: None,
        used_at: None,
        last_seq: 1,
        changed_at: line.at,
    }
}

fn apply(row: &mut UserCouponRow, line: &HistoryRow) {
    let is_use = line.to_status == "USED";
    row.status.clone_from(&line.to_status);
    row.order_id = line.order_id.clone().filter(|_| is_use);
    row.order_amount = line.order_amount.filter(|_| is_use);
    row.discount_amount = line.discount_amount.filter(|_| is_use);
    row.used_at = is_use.then_some(line.at);
    row.last_seq = line.seq;
    row.changed_at = line.at;
}

fn difference(row: &UserCouponRow, replay: &UserCouponRow) -> String {
    let compare = |name: &str, is: String, should: String| {
        (is != should).then(|| format!("{name} is {is}, its history says {should}"))
    };
    let differences = [
        compare("status", row.status.clone(), replay.status.clone()),
        compare("coupon_id", row.coupon_id.to_string(), replay.coupon_id.to_string()),
        compare("user_id", row.user_id.to_string(), replay.user_id.to_string()),
        compare("slot_no", row.slot_no.to_string(), replay.slot_no.to_string()),
        compare("issued_at", row.issued_at.to_string(), replay.issued_at.to_string()),
        compare("order_id", format!("{:?}", row.order_id), format!("{:?}", replay.order_id)),
        compare("order_amount", format!("{:?}", row.order_amount), format!("{:?}", replay.order_amount)),
        compare(
            "discount_amount",
            format!("{:?}", row.discount_amount),
            format!("{:?}", replay.discount_amount),
        ),
        compare("used_at", format!("{:?}", row.used_at), format!("{:?}", replay.used_at)),
        compare("last_seq", row.last_seq.to_string(), replay.last_seq.to_string()),
        compare("changed_at", row.changed_at.to_string(), replay.changed_at.to_string()),
    ];
    differences.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// I9
pub(super) fn told_is_true(facts: &Facts) -> Verdict {
    let Some(answers) = &facts.answers else { return (None, Vec::new()) };
    let rows: HashSet<(i64, i64)> =
        facts.user_coupons.iter().map(|row| (row.coupon_id, row.user_id)).collect();
    let mut findings = Vec::new();
    for ((coupon, user), told) in answers {
        let subject = format!("coupon {coupon} user {user}");
        let has_row = rows.contains(&(*coupon, *user));
        if told.yes && !has_row {
            findings.push((subject, "was told yes and has no row".into()));
        } else if told.no && !told.yes && !told.unknown && has_row {
            findings.push((subject, "was told a definite no and has a row".into()));
        }
    }
    (Some(answers.len()), findings)
}
