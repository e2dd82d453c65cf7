//! Consumer groups: who owns what, when it moves, and whose commits count.

use super::*;

pub fn one_member_gets_all_partitions(log: &dyn ClientSupplier) {
    let topic = topic(log, 3);
    write(log, &topic, &["a"]);
    let mut member = Member::join(log, &group_config(&unique("group"), None), std::slice::from_ref(&topic));
    until("the record is read", || {
        member.step();
        (!member.records.is_empty()).then_some(())
    });
    assert_eq!(member.owns(), [0, 1, 2]);
    let metadata = member.consumer.group_metadata().unwrap();
    assert!(metadata.generation_id >= 1 && !metadata.member_id.is_empty(), "{metadata:?}");
    assert!(matches!(&member.events[..], [Rebalance::Assigned(_)]), "{:?}", member.events);
}

pub fn two_members_share_and_inherit(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 4), unique("group"));
    let config = group_config(&group, None);
    let mut first = Member::join(log, &config, std::slice::from_ref(&topic));
    first.until_owning(4);
    let mut second = Member::join(log, &config, std::slice::from_ref(&topic));
    until("each owns two", || {
        first.step();
        second.step();
        let both: Vec<_> = first.owned.iter().chain(&second.owned).collect();
        let mut distinct = both.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), both.len(), "a partition has two owners");
        (first.owned.len() == 2 && second.owned.len() == 2).then_some(())
    });
    assert!(first.events.iter().any(|e| matches!(e, Rebalance::Revoked(list) if list.len() == 4)));

    // The second commits, leaves, and the first goes on where it was.
    let partition = second.owned[0].clone();
    let mut producer = plain_producer(log);
    for value in ["done", "next"] {
        producer.send(record(&topic, partition.partition, value)).unwrap();
    }
    producer.flush().unwrap();
    until("the second has read both", || {
        first.step();
        second.step();
        (second.records.len() == 2).then_some(())
    });
    second.consumer.commit(&offsets_of([(&partition, offset(1, ""))])).unwrap();
    second.consumer.close();
    until("the first has read what was not committed", || {
        first.step();
        (!first.records.is_empty()).then_some(())
    });
    assert_eq!(first.owns(), [0, 1, 2, 3]);
    assert_eq!(values(&first.records), ["next"]);
}

pub fn topics_of_equal_count_go_together(log: &dyn ClientSupplier) {
    let topics = [topic(log, 3), topic(log, 3)];
    let config = group_config(&unique("group"), None);
    let mut members = [Member::join(log, &config, &topics), Member::join(log, &config, &topics)];
    until("all six are owned by both", || {
        members.iter_mut().for_each(Member::step);
        let counts = [members[0].owned.len(), members[1].owned.len()];
        (counts.iter().sum::<usize>() == 6 && !counts.contains(&0)).then_some(())
    });
    for member in &members {
        let numbers_of = |topic: &str| {
            let mut numbers: Vec<_> =
                member.owned.iter().filter(|tp| &*tp.topic == topic).map(|tp| tp.partition).collect();
            numbers.sort_unstable();
            numbers
        };
        assert_eq!(numbers_of(&topics[0]), numbers_of(&topics[1]), "{:?}", member.owned);
    }
}

pub fn a_static_member_returns_without_a_rebalance(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 2), unique("group"));
    let names = [Some("one"), Some("two")];
    let topics = std::slice::from_ref(&topic);
    let mut stays = Member::join(log, &group_config(&group, names[0]), topics);
    let mut leaves = Member::join(log, &group_config(&group, names[1]), topics);
    until("each owns one", || {
        stays.step();
        leaves.step();
        (stays.owned.len() == 1 && leaves.owned.len() == 1).then_some(())
    });
    let (events, owned) = (stays.events.len(), leaves.owned.clone());
    let generation = stays.consumer.group_metadata().unwrap().generation_id;
    leaves.consumer.close();
    drop(leaves);

    let mut returned = Member::join(log, &group_config(&group, names[1]), topics);
    until("the returned member has its partition", || {
        stays.step();
        returned.step();
        (returned.owned == owned).then_some(())
    });
    assert_eq!(stays.events.len(), events, "the other member saw no rebalance");
    assert_eq!(stays.consumer.group_metadata().unwrap().generation_id, generation);
    assert_eq!(returned.consumer.group_metadata().unwrap().generation_id, generation);
}

pub fn a_static_member_may_come_back_with_more_topics(log: &dyn ClientSupplier) {
    let (first, second, group) = (topic(log, 2), topic(log, 3), unique("group"));
    let config = group_config(&group, Some("one"));
    let mut member = Member::join(log, &config, std::slice::from_ref(&first));
    member.until_owning(2);
    member.consumer.close();
    drop(member);
    let mut member = Member::join(log, &config, &[first, second]);
    member.until_owning(5);
}

pub fn commits_are_read_back_with_their_text(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 3), unique("group"));
    let mut member = Member::join(log, &group_config(&group, None), std::slice::from_ref(&topic));
    member.until_owning(3);
    write(log, &topic, &["a", "b"]);
    let tps: Vec<_> = (0..3).map(|p| TopicPartition::new(topic.as_str(), p)).collect();
    assert_eq!(member.consumer.committed(&tps).unwrap(), BTreeMap::new());
    let offsets = offsets_of([(&tps[0], offset(2, "clock=5;α")), (&tps[2], offset(0, ""))]);
    member.consumer.commit(&offsets).unwrap();
    assert_eq!(member.consumer.committed(&tps).unwrap(), offsets);
    assert_eq!(admin(log).group_offsets(&group).unwrap(), offsets);
    assert_eq!(admin(log).group_offsets(&unique("group")).unwrap(), BTreeMap::new());
}

pub fn a_stale_member_cannot_commit(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 2), unique("group"));
    let config = group_config(&group, None);
    let mut member = Member::join(log, &config, std::slice::from_ref(&topic));
    member.until_owning(2);
    // An outsider with the group's name and no membership must not move its offsets.
    let mut outsider = log.consumer(&config).unwrap();
    let partition = TopicPartition::new(topic.as_str(), 0);
    outsider.assign(&[(partition.clone(), Some(0))]).unwrap();
    let error = outsider.commit(&offsets_of([(&partition, offset(1, ""))])).unwrap_err();
    assert!(matches!(error, StreamsError::TaskMigrated(_)), "{error:?}");
}

pub fn a_group_can_be_reset_only_when_inactive(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 1), unique("group"));
    let partition = TopicPartition::new(topic.as_str(), 0);
    write(log, &topic, &["a", "b", "c"]);
    let mut member = Member::join(log, &group_config(&group, None), std::slice::from_ref(&topic));
    member.until_owning(1);
    member.consumer.commit(&offsets_of([(&partition, offset(3, ""))])).unwrap();
    let to_one = offsets_of([(&partition, offset(1, ""))]);
    assert!(admin(log).alter_group_offsets(&group, &to_one).is_err(), "the group is active");
    let members = admin(log).group_members(&group).unwrap();
    assert!(
        matches!(&members[..], [one] if one.group_instance_id.is_none() && !one.member_id.is_empty()),
        "{members:?}"
    );
    assert_eq!(admin(log).group_members(&unique("group")).unwrap(), []);
    assert!(admin(log).delete_group(&group).is_err(), "the group is active");
    member.consumer.close();
    drop(member);
    until("the group is inactive", || admin(log).alter_group_offsets(&group, &to_one).ok());
    assert_eq!(admin(log).group_members(&group).unwrap(), []);
    assert_eq!(admin(log).group_offsets(&group).unwrap(), to_one);

    let mut member = Member::join(log, &group_config(&group, None), std::slice::from_ref(&topic));
    until("it reads from the new offset", || {
        member.step();
        (member.records.len() == 2).then_some(())
    });
    assert_eq!(values(&member.records), ["b", "c"]);
    member.consumer.close();
    drop(member);
    until("the group is deleted", || admin(log).delete_group(&group).ok());
    assert_eq!(admin(log).group_offsets(&group).unwrap(), BTreeMap::new());
}
