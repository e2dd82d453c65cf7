//! A consumer group: members, generations and who owns what. Pure: takes `now`, knows no lock and no record.
//!
//! The protocol is the classic eager one. A member's way through a rebalance:
//!
//! ```text
//!            join                round complete           poll                 assign
//!   (none) ───────> Joined ──────────────────> AssignDue ─────> AssignHanded ─────────> Stable
//!                     ^                            │                  (asked to rejoin:    │
//!                     │                            │ new round         RevokeDue at once)  │ new round
//!                     │<───────────────────────────┘                                       v
//!                     └───────────────────── RevokeHanded <───────── poll ─────────── RevokeDue
//!                             unassign
//! ```
//!
//! Always: a round completes only when every member is `Joined`, so no partition has two owners that both have
//! acknowledged; the generation grows with every round; a member not heard of for its session timeout is removed.

use std::collections::{BTreeMap, BTreeSet};

use super::waiter::WaitList;
use crate::streams::{
    client::{GroupMember, GroupMetadata, OffsetAndMetadata, Rebalance},
    record::{Timestamp, TopicPartition},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Joined,
    AssignDue,
    AssignHanded,
    Stable,
    RevokeDue,
    RevokeHanded,
}

struct Member {
    instance_id: Option<String>,
    topics: BTreeSet<String>,
    heard_at: Timestamp,
    session_timeout_ms: i64,
    assignment: Vec<TopicPartition>,
    phase: Phase,
    /// A round began while an assignment was in the member's hands: revoke it as soon as it is acknowledged.
    rejoin_wanted: bool,
}

/// Why a member is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stale {
    /// The group went on to another generation.
    Generation { current: i32 },
    /// The group does not know the member (any more).
    UnknownMember,
    /// A newer member took the static name.
    FencedInstance,
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stale::Generation { current } => write!(f, "the group is at generation {current} now"),
            Stale::UnknownMember => {
                f.write_str("the group does not know this member (its session expired, or it left)")
            }
            Stale::FencedInstance => f.write_str("a newer member uses the same group_instance_id"),
        }
    }
}

/// One group.
#[derive(Default)]
pub(super) struct Group {
    generation: i32,
    members: BTreeMap<String, Member>,
    members_ever: u64,
    pub committed: BTreeMap<TopicPartition, OffsetAndMetadata>,
    /// Members that sleep until something happens here.
    pub waiters: WaitList,
}

/// How many partitions a topic has; 0 when it does not exist.
pub(super) type PartitionsOf<'a> = &'a dyn Fn(&str) -> i32;

impl Group {
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn members(&self) -> Vec<GroupMember> {
        let described = |(id, member): (&String, &Member)| GroupMember {
            member_id: id.clone(),
            group_instance_id: member.instance_id.clone(),
        };
        self.members.iter().map(described).collect()
    }

    pub(super) fn generation(&self) -> i32 {
        self.generation
    }

    pub(super) fn knows(&self, member_id: &str) -> bool {
        self.members.contains_key(member_id)
    }

    pub(super) fn has_instance(&self, instance_id: &str) -> bool {
        self.members.values().any(|m| m.instance_id.as_deref() == Some(instance_id))
    }

    /// Lets a consumer in; a static name takes over its predecessor's place, without a rebalance where nothing changed.
    pub(super) fn join(
        &mut self,
        group_id: &str,
        instance_id: Option<&str>,
        topics: &[String],
        session_timeout_ms: i64,
        now: Timestamp,
        partitions_of: PartitionsOf<'_>,
    ) -> String {
        self.members_ever += 1;
        // Zero-padded so that the order of ids, by which range assignment goes, is the order of joining.
        let member_id = format!("{}-{:08}", instance_id.unwrap_or(group_id), self.members_ever);
        let topics: BTreeSet<String> = topics.iter().cloned().collect();
        let predecessor = instance_id.and_then(|name| {
            let found = self.members.iter().find(|(_, m)| m.instance_id.as_deref() == Some(name));
            found.map(|(id, _)| id.clone())
        });
        let predecessor = predecessor.and_then(|id| self.members.remove(&id));

        let mut member = Member {
            instance_id: instance_id.map(str::to_owned),
            topics,
            heard_at: now,
            session_timeout_ms,
            assignment: Vec::new(),
            phase: Phase::Joined,
            rejoin_wanted: false,
        };
        let same_place = predecessor.filter(|old| {
            let settled = matches!(old.phase, Phase::Stable | Phase::AssignDue | Phase::AssignHanded);
            old.topics == member.topics && settled && !old.rejoin_wanted
        });
        match same_place {
            Some(old) => {
                member.assignment = old.assignment;
                member.phase = Phase::AssignDue;
                self.members.insert(member_id.clone(), member);
            }
            None => {
                self.members.insert(member_id.clone(), member);
                self.begin_round(partitions_of);
            }
        }
        self.waiters.wake_all();
        member_id
    }

    /// The member wants other topics from now on.
    pub(super) fn resubscribe(
        &mut self,
        member_id: &str,
        topics: &[String],
        partitions_of: PartitionsOf<'_>,
    ) {
        let topics: BTreeSet<String> = topics.iter().cloned().collect();
        let Some(member) = self.members.get_mut(member_id) else { return };
        if member.topics != topics {
            member.topics = topics;
            self.begin_round(partitions_of);
        }
    }

    /// Removes a member that says goodbye.
    pub(super) fn leave(&mut self, member_id: &str, partitions_of: PartitionsOf<'_>) {
        if self.members.remove(member_id).is_some() {
            self.begin_round(partitions_of);
        }
    }

    /// A topic came, went or grew.
    pub(super) fn topics_changed(&mut self, topics: &[&str], partitions_of: PartitionsOf<'_>) {
        if self.members.values().any(|m| topics.iter().any(|t| m.topics.contains(*t))) {
            self.begin_round(partitions_of);
        }
    }

    pub(super) fn heartbeat(&mut self, member_id: &str, now: Timestamp) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.heard_at = now;
        }
    }

    /// Removes members whose session has expired.
    pub(super) fn expire(&mut self, now: Timestamp, partitions_of: PartitionsOf<'_>) {
        let before = self.members.len();
        self.members.retain(|_, m| now - m.heard_at <= m.session_timeout_ms);
        if self.members.len() != before {
            self.begin_round(partitions_of);
        }
    }

    fn begin_round(&mut self, partitions_of: PartitionsOf<'_>) {
        for member in self.members.values_mut() {
            match member.phase {
                // Never handed out, so it can be taken back silently.
                Phase::AssignDue => member.phase = Phase::Joined,
                Phase::AssignHanded => member.rejoin_wanted = true,
                Phase::Stable if member.assignment.is_empty() => member.phase = Phase::Joined,
                Phase::Stable => member.phase = Phase::RevokeDue,
                Phase::Joined | Phase::RevokeDue | Phase::RevokeHanded => {}
            }
        }
        self.complete_round(partitions_of);
        self.waiters.wake_all();
    }

    fn complete_round(&mut self, partitions_of: PartitionsOf<'_>) {
        if self.members.is_empty() || self.members.values().any(|m| m.phase != Phase::Joined) {
            return;
        }
        self.generation += 1;
        let assignments = range_assign(&self.members, partitions_of);
        for ((_, member), assignment) in self.members.iter_mut().zip(assignments) {
            member.assignment = assignment;
            member.phase = Phase::AssignDue;
        }
        self.waiters.wake_all();
    }

    /// What the member's poll must hand out now.
    pub(super) fn next_event(&mut self, member_id: &str) -> Option<Rebalance> {
        let member = self.members.get_mut(member_id)?;
        match member.phase {
            Phase::AssignDue => {
                member.phase = Phase::AssignHanded;
                Some(Rebalance::Assigned(member.assignment.clone()))
            }
            Phase::RevokeDue => {
                member.phase = Phase::RevokeHanded;
                Some(Rebalance::Revoked(member.assignment.clone()))
            }
            Phase::Joined | Phase::AssignHanded | Phase::Stable | Phase::RevokeHanded => None,
        }
    }

    /// The member has taken its assignment.
    pub(super) fn acknowledge_assigned(&mut self, member_id: &str, partitions_of: PartitionsOf<'_>) {
        let Some(member) = self.members.get_mut(member_id) else { return };
        if member.phase == Phase::AssignHanded {
            let empty = member.assignment.is_empty();
            member.phase = match std::mem::take(&mut member.rejoin_wanted) {
                false => Phase::Stable,
                true if empty => Phase::Joined,
                true => Phase::RevokeDue,
            };
            self.complete_round(partitions_of);
        }
    }

    /// The member has given its partitions up.
    pub(super) fn acknowledge_revoked(&mut self, member_id: &str, partitions_of: PartitionsOf<'_>) {
        let Some(member) = self.members.get_mut(member_id) else { return };
        match member.phase {
            Phase::RevokeHanded => {
                member.assignment.clear();
                member.phase = Phase::Joined;
                self.complete_round(partitions_of);
            }
            // Refusing an assignment counts as taking it: the group must not wait for ever.
            Phase::AssignHanded => self.acknowledge_assigned(member_id, partitions_of),
            _ => {}
        }
    }

    /// Whether a commit under this identity is still allowed (KIP-447 for transactional ones).
    pub(super) fn check(&self, metadata: &GroupMetadata) -> Result<(), Stale> {
        if metadata.generation_id < 0 && metadata.member_id.is_empty() {
            // Not a member: allowed while the group has none, as in Kafka.
            return if self.members.is_empty() { Ok(()) } else { Err(Stale::UnknownMember) };
        }
        if !self.members.contains_key(&metadata.member_id) {
            let fenced = metadata.group_instance_id.as_deref().is_some_and(|name| self.has_instance(name));
            return Err(if fenced { Stale::FencedInstance } else { Stale::UnknownMember });
        }
        if metadata.generation_id != self.generation {
            return Err(Stale::Generation { current: self.generation });
        }
        Ok(())
    }
}

/// Kafka's range assignor: per topic, the members that want it, sorted, get runs of neighbours, the first ones the extras.
fn range_assign(
    members: &BTreeMap<String, Member>,
    partitions_of: PartitionsOf<'_>,
) -> Vec<Vec<TopicPartition>> {
    let mut order: Vec<(usize, &Member)> = members.values().enumerate().collect();
    // Static members first and by name; the others keep the order of their ids, which the map gives.
    order.sort_by_key(|(_, m)| (m.instance_id.is_none(), m.instance_id.clone()));
    let topics: BTreeSet<&String> = members.values().flat_map(|m| &m.topics).collect();
    let mut assignments = vec![Vec::new(); members.len()];
    for topic in topics {
        let wanting: Vec<usize> =
            order.iter().filter(|(_, m)| m.topics.contains(topic)).map(|(i, _)| *i).collect();
        let (count, among) = (partitions_of(topic).max(0) as usize, wanting.len());
        let name: std::sync::Arc<str> = topic.as_str().into();
        let mut next = 0;
        for (place, member) in wanting.into_iter().enumerate() {
            let share = count / among + usize::from(place < count % among);
            assignments[member]
                .extend((next..next + share).map(|p| TopicPartition::new(name.clone(), p as i32)));
            next += share;
        }
    }
    assignments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn five(topic: &str) -> i32 {
        if topic == "t" { 5 } else { 0 }
    }

    fn join(group: &mut Group, instance: Option<&str>, now: i64) -> String {
        group.join("g", instance, &["t".to_owned()], 100, now, &five)
    }

    fn assigned(group: &mut Group, member: &str) -> Vec<i32> {
        match group.next_event(member) {
            Some(Rebalance::Assigned(list)) => {
                group.acknowledge_assigned(member, &five);
                list.iter().map(|tp| tp.partition).collect()
            }
            other => panic!("expected an assignment, got {other:?}"),
        }
    }

    fn identity(group: &Group, member: &str) -> GroupMetadata {
        GroupMetadata {
            group_id: "g".into(),
            generation_id: group.generation(),
            member_id: member.into(),
            group_instance_id: None,
        }
    }

    #[test]
    fn a_second_member_waits_until_the_first_has_given_up() {
        let mut g = Group::default();
        let a = join(&mut g, None, 0);
        assert_eq!(assigned(&mut g, &a), [0, 1, 2, 3, 4]);
        let old = identity(&g, &a);
        let b = join(&mut g, None, 0);
        assert_eq!(g.next_event(&b), None);
        assert!(matches!(g.next_event(&a), Some(Rebalance::Revoked(list)) if list.len() == 5));
        assert_eq!(g.check(&old), Ok(()), "the last commit before giving up is allowed");
        g.acknowledge_revoked(&a, &five);
        assert_eq!(g.check(&old), Err(Stale::Generation { current: 2 }));
        assert_eq!(assigned(&mut g, &a), [0, 1, 2]);
        assert_eq!(assigned(&mut g, &b), [3, 4]);
    }

    #[test]
    fn a_silent_member_is_removed_and_refused() {
        let mut g = Group::default();
        let (a, b) = (join(&mut g, None, 0), join(&mut g, None, 50));
        assigned(&mut g, &a);
        let old = identity(&g, &a);
        g.heartbeat(&b, 120);
        g.expire(140, &five);
        assert_eq!(assigned(&mut g, &b), [0, 1, 2, 3, 4]);
        assert_eq!(g.check(&old), Err(Stale::UnknownMember));
    }

    #[test]
    fn a_static_successor_takes_the_place_without_a_round() {
        let mut g = Group::default();
        let (a, b) = (join(&mut g, Some("one"), 0), join(&mut g, Some("two"), 0));
        assert_eq!((assigned(&mut g, &a), assigned(&mut g, &b)), (vec![0, 1, 2], vec![3, 4]));
        let mut old = identity(&g, &a);
        old.group_instance_id = Some("one".into());
        let generation = g.generation();
        let successor = join(&mut g, Some("one"), 0);
        assert_eq!(g.next_event(&b), None);
        assert_eq!(assigned(&mut g, &successor), [0, 1, 2]);
        assert_eq!(g.generation(), generation);
        assert_eq!(g.check(&old), Err(Stale::FencedInstance));
    }

    #[test]
    fn an_assignment_in_hand_is_revoked_right_after_it_is_acknowledged() {
        let mut g = Group::default();
        let a = join(&mut g, None, 0);
        assert!(matches!(g.next_event(&a), Some(Rebalance::Assigned(_))));
        let b = join(&mut g, None, 0);
        assert_eq!(g.next_event(&b), None, "the first member still holds an assignment of the old round");
        g.acknowledge_assigned(&a, &five);
        assert!(matches!(g.next_event(&a), Some(Rebalance::Revoked(_))));
        g.acknowledge_revoked(&a, &five);
        assert_eq!((assigned(&mut g, &a), assigned(&mut g, &b)), (vec![0, 1, 2], vec![3, 4]));
    }
}
