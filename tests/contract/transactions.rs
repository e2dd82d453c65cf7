//! Transactions: all or nothing for records and offsets, and who may still write.

use super::*;

pub fn a_committed_transaction_shows_all_of_it(log: &dyn ClientSupplier) {
    let topic = topic(log, 3);
    let mut producer = transactional_producer(log, &unique("tx"));
    for round in 0..3 {
        producer.begin_transaction().unwrap();
        for partition in 0..3 {
            producer.send(record(&topic, partition, &format!("{round}"))).unwrap();
        }
        retried("commit", || producer.commit_transaction());
    }
    let records = take(&mut *reader(log, &topic, 3, true), 9);
    for partition in 0..3 {
        let of_one: Vec<_> = records.iter().filter(|r| r.partition == partition).cloned().collect();
        assert_eq!(values(&of_one), ["0", "1", "2"]);
        assert_eq!(
            of_one.iter().map(|r| r.offset).collect::<Vec<_>>(),
            [0, 2, 4],
            "a marker follows each commit"
        );
    }
    // A transaction without anything in it is fine too.
    producer.begin_transaction().unwrap();
    producer.commit_transaction().unwrap();
}

pub fn an_aborted_transaction_shows_nothing(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    let mut producer = transactional_producer(log, &unique("tx"));
    producer.begin_transaction().unwrap();
    producer.send(record(&topic, 0, "aborted")).unwrap();
    producer.flush().unwrap();
    retried("abort", || producer.abort_transaction());
    producer.begin_transaction().unwrap();
    producer.send(record(&topic, 0, "kept")).unwrap();
    retried("commit", || producer.commit_transaction());
    assert_eq!(values(&take(&mut *reader(log, &topic, 1, true), 1)), ["kept"]);
}

pub fn an_open_transaction_holds_back_what_follows(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    write(log, &topic, &["before"]);
    let mut producer = transactional_producer(log, &unique("tx"));
    producer.begin_transaction().unwrap();
    producer.send(record(&topic, 0, "open")).unwrap();
    producer.flush().unwrap();
    // Until it is in the log, what is written next could come before it.
    let mut dirty = reader(log, &topic, 1, false);
    assert_eq!(values(&take(&mut *dirty, 2)), ["before", "open"]);
    write(log, &topic, &["after"]);
    assert_eq!(values(&take(&mut *dirty, 1)), ["after"]);

    let mut clean = reader(log, &topic, 1, true);
    assert_eq!(values(&read_to_end(&mut *clean, &topic)), ["before"]);
    assert_eq!(clean.watermarks(&partition).unwrap(), (0, 1), "the end is the last stable offset");
    assert_eq!(dirty.watermarks(&partition).unwrap(), (0, 3), "the end is the high watermark");
    retried("commit", || producer.commit_transaction());
    assert_eq!(values(&take(&mut *clean, 2)), ["open", "after"]);
}

pub fn offsets_move_with_the_transaction(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 1), unique("group"));
    write(log, &topic, &["in"]);
    let mut member = Member::join(log, &group_config(&group, None), std::slice::from_ref(&topic));
    member.until_owning(1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let mut producer = transactional_producer(log, &unique("tx"));
    producer.begin_transaction().unwrap();
    producer.send(record(&topic, 0, "out")).unwrap();
    let offsets = offsets_of([(&partition, offset(1, "clock=7"))]);
    let metadata = member.consumer.group_metadata().unwrap();
    retried("send offsets", || producer.send_offsets_to_transaction(&offsets, &metadata));
    retried("commit", || producer.commit_transaction());
    let committed = member.consumer.committed(std::slice::from_ref(&partition)).unwrap();
    assert_eq!(committed, offsets);
    assert_eq!(admin(log).group_offsets(&group).unwrap(), offsets);
}

pub fn offsets_of_an_aborted_transaction_stay(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 1), unique("group"));
    write(log, &topic, &["in"]);
    let mut member = Member::join(log, &group_config(&group, None), std::slice::from_ref(&topic));
    member.until_owning(1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let mut producer = transactional_producer(log, &unique("tx"));
    let metadata = member.consumer.group_metadata().unwrap();
    for (value, aborted) in [(5, true), (1, false), (6, true)] {
        producer.begin_transaction().unwrap();
        producer.send(record(&topic, 0, "out")).unwrap();
        producer.flush().unwrap();
        let offsets = offsets_of([(&partition, offset(value, ""))]);
        retried("send offsets", || producer.send_offsets_to_transaction(&offsets, &metadata));
        match aborted {
            true => retried("abort", || producer.abort_transaction()),
            false => retried("commit", || producer.commit_transaction()),
        }
    }
    let committed = retried("committed", || member.consumer.committed(std::slice::from_ref(&partition)));
    assert_eq!(committed, offsets_of([(&partition, offset(1, ""))]));
}

/// To whom does not read committed, at once; to whom does, not before it is decided.
pub fn offsets_of_an_open_transaction_are_not_told(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 1), unique("group"));
    let mut member = Member::join(log, &group_config(&group, None), std::slice::from_ref(&topic));
    member.until_owning(1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let mut producer = transactional_producer(log, &unique("tx"));
    let metadata = member.consumer.group_metadata().unwrap();
    let of = |at: i64| offsets_of([(&partition, offset(at, ""))]);
    producer.begin_transaction().unwrap();
    retried("send offsets", || producer.send_offsets_to_transaction(&of(1), &metadata));
    retried("commit", || producer.commit_transaction());
    producer.begin_transaction().unwrap();
    retried("send offsets", || producer.send_offsets_to_transaction(&of(2), &metadata));

    let asks = |read_committed: bool| {
        let group_id = Some(group.clone());
        log.consumer(&ConsumerConfig { group_id, read_committed, ..ConsumerConfig::default() }).unwrap()
    };
    let tps = [partition.clone()];
    let begun = Instant::now();
    assert_eq!(retried("committed", || asks(false).committed(&tps)), of(1));
    assert!(begun.elapsed() < Duration::from_secs(5), "it waited {:?}", begun.elapsed());
    retried("commit", || producer.commit_transaction());
    assert_eq!(retried("committed", || asks(true).committed(&tps)), of(2));
}

pub fn a_newer_producer_fences_the_older(log: &dyn ClientSupplier) {
    let (topic, id) = (topic(log, 1), unique("tx"));
    let mut old = transactional_producer(log, &id);
    old.begin_transaction().unwrap();
    old.send(record(&topic, 0, "zombie")).unwrap();
    old.flush().unwrap();
    let mut new = transactional_producer(log, &id);
    let error = old.commit_transaction().unwrap_err();
    assert!(matches!(error, StreamsError::TaskMigrated(_)), "{error:?}");
    assert!(old.abort_transaction().is_err(), "a fenced producer is of no further use");

    new.begin_transaction().unwrap();
    new.send(record(&topic, 0, "new")).unwrap();
    retried("commit", || new.commit_transaction());
    assert_eq!(values(&take(&mut *reader(log, &topic, 1, true), 1)), ["new"]);
}

pub fn what_a_predecessor_left_open_is_aborted(log: &dyn ClientSupplier) {
    let (topic, id) = (topic(log, 1), unique("tx"));
    let mut old = transactional_producer(log, &id);
    old.begin_transaction().unwrap();
    old.send(record(&topic, 0, "left open")).unwrap();
    old.flush().unwrap();
    // As in a crash: no abort is sent.
    drop(old);
    write(log, &topic, &["after"]);
    let mut clean = reader(log, &topic, 1, true);
    assert_eq!(values(&read_to_end(&mut *clean, &topic)), [""; 0]);
    transactional_producer(log, &id);
    assert_eq!(values(&take(&mut *clean, 1)), ["after"]);
}

pub fn position_steps_over_markers(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let mut producer = transactional_producer(log, &unique("tx"));
    for commit in [true, false] {
        producer.begin_transaction().unwrap();
        producer.send(record(&topic, 0, "v")).unwrap();
        producer.flush().unwrap();
        match commit {
            true => retried("commit", || producer.commit_transaction()),
            false => retried("abort", || producer.abort_transaction()),
        }
    }
    // record 0, marker 1, aborted 2, marker 3
    let mut clean = reader(log, &topic, 1, true);
    assert_eq!(values(&read_to_end(&mut *clean, &topic)), ["v"]);
    assert_eq!(clean.position(&partition).unwrap(), Some(4));
    assert_eq!(clean.watermarks(&partition).unwrap(), (0, 4));
}

pub fn a_timed_out_transaction_is_aborted_and_its_producer_fenced(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    let mut producer = producer_with_timeout(log, &unique("tx"), Some(Duration::from_secs(1)));
    producer.begin_transaction().unwrap();
    producer.send(record(&topic, 0, "late")).unwrap();
    producer.flush().unwrap();
    write(log, &topic, &["after"]);
    // The log ends it by itself; only then is what follows to be read.
    let mut clean = reader(log, &topic, 1, true);
    assert_eq!(values(&take(&mut *clean, 1)), ["after"]);
    let error = producer.commit_transaction().unwrap_err();
    assert!(matches!(error, StreamsError::TaskMigrated(_) | StreamsError::AbortTransaction(_)), "{error:?}");
}

pub fn a_member_of_an_old_generation_is_refused(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 2), unique("group"));
    let mut member = Member::join(log, &group_config(&group, None), std::slice::from_ref(&topic));
    member.until_owning(2);
    let zombie = member.consumer.group_metadata().unwrap();
    // A second member makes a new generation.
    let mut second = Member::join(log, &group_config(&group, None), std::slice::from_ref(&topic));
    until("both own one", || {
        member.step();
        second.step();
        (member.owned.len() == 1 && second.owned.len() == 1).then_some(())
    });
    let partition = TopicPartition::new(topic.as_str(), 0);
    let offsets = offsets_of([(&partition, offset(1, ""))]);
    let mut producer = refused_for_identity(log, &topic, &offsets, &zombie);

    // The producer itself is fine: with the identity of now it goes on.
    producer.begin_transaction().unwrap();
    producer.send(record(&topic, 0, "good")).unwrap();
    let current = member.consumer.group_metadata().unwrap();
    assert!(current.generation_id > zombie.generation_id);
    retried("send offsets", || producer.send_offsets_to_transaction(&offsets, &current));
    retried("commit", || producer.commit_transaction());
    assert_eq!(values(&take(&mut *reader(log, &topic, 1, true), 1)), ["good"]);
    assert_eq!(admin(log).group_offsets(&group).unwrap(), offsets);
}

pub fn a_member_may_commit_while_it_gives_up(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 2), unique("group"));
    write(log, &topic, &["in"]);
    let config = group_config(&group, None);
    let mut first = Member::join(log, &config, std::slice::from_ref(&topic));
    first.until_owning(2);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let mut producer = transactional_producer(log, &unique("tx"));
    producer.begin_transaction().unwrap();
    producer.send(record(&topic, 1, "out")).unwrap();
    let mut second = Member::join(log, &config, std::slice::from_ref(&topic));
    until("the first is told to give up", || {
        second.step();
        let polled = first.consumer.poll(Duration::from_millis(20)).unwrap();
        matches!(polled.rebalance, Some(Rebalance::Revoked(_))).then_some(())
    });
    // Before it acknowledges: whoever comes next starts where this commit ends.
    let metadata = first.consumer.group_metadata().unwrap();
    let offsets = offsets_of([(&partition, offset(1, "last"))]);
    retried("send offsets", || producer.send_offsets_to_transaction(&offsets, &metadata));
    retried("commit", || producer.commit_transaction());
    first.consumer.unassign().unwrap();
    until("each owns one", || {
        first.step();
        second.step();
        (first.owned.len() == 1 && second.owned.len() == 1).then_some(())
    });
    let committed = retried("committed", || second.consumer.committed(std::slice::from_ref(&partition)));
    assert_eq!(committed, offsets);
    let [one, other] = [&first, &second].map(|member| member.consumer.group_metadata().unwrap());
    assert_eq!(one.generation_id, other.generation_id, "both are of one generation");
    assert!(one.generation_id > metadata.generation_id, "and it is a later one");
}

pub fn pending_offsets_are_waited_for(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 1), unique("group"));
    write(log, &topic, &["a", "b"]);
    let mut member = Member::join(log, &group_config(&group, None), std::slice::from_ref(&topic));
    member.until_owning(1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let mut producer = transactional_producer(log, &unique("tx"));
    let metadata = member.consumer.group_metadata().unwrap();
    let old = offsets_of([(&partition, offset(1, ""))]);
    let new = offsets_of([(&partition, offset(2, ""))]);
    for offsets in [&old, &new] {
        producer.begin_transaction().unwrap();
        producer.send(record(&topic, 0, "out")).unwrap();
        retried("send offsets", || producer.send_offsets_to_transaction(offsets, &metadata));
        if offsets == &old {
            retried("commit", || producer.commit_transaction());
        }
    }
    // Nobody may start at the old offset while the new one is about to become true.
    let asking = std::sync::Barrier::new(2);
    let found = std::thread::scope(|scope| {
        let found = scope.spawn(|| {
            asking.wait();
            retried("committed", || member.consumer.committed(std::slice::from_ref(&partition)))
        });
        asking.wait();
        retried("commit", || producer.commit_transaction());
        found.join().unwrap()
    });
    assert_eq!(found, new);
}

pub fn what_is_aborted_between_is_left_out(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    let ids = [unique("tx"), unique("tx")];
    let mut producers = ids.each_ref().map(|id| transactional_producer(log, id));
    producers.iter_mut().for_each(|producer| producer.begin_transaction().unwrap());
    for round in 0..3 {
        for (who, producer) in producers.iter_mut().enumerate() {
            producer.send(record(&topic, 0, &format!("{who}-{round}"))).unwrap();
            producer.flush().unwrap();
        }
    }
    let [aborted, committed] = &mut producers;
    retried("commit", || committed.commit_transaction());
    let mut clean = reader(log, &topic, 1, true);
    assert_eq!(values(&read_to_end(&mut *clean, &topic)), [""; 0], "the first record is still undecided");
    retried("abort", || aborted.abort_transaction());
    assert_eq!(values(&take(&mut *clean, 3)), ["1-0", "1-1", "1-2"]);
}

pub fn a_successor_of_its_name_fences_a_member(log: &dyn ClientSupplier) {
    let (topic, group) = (topic(log, 1), unique("group"));
    write(log, &topic, &["in"]);
    let config = group_config(&group, Some("one"));
    let mut old = Member::join(log, &config, std::slice::from_ref(&topic));
    old.until_owning(1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let offsets = offsets_of([(&partition, offset(1, ""))]);
    let zombie = old.consumer.group_metadata().unwrap();
    let mut new = Member::join(log, &config, std::slice::from_ref(&topic));
    new.until_owning(1);

    refused_for_identity(log, &topic, &offsets, &zombie);
    let refused = old.consumer.commit(&offsets).unwrap_err();
    assert!(matches!(refused, StreamsError::TaskMigrated(_) | StreamsError::Fatal(_)), "{refused:?}");
    assert_eq!(admin(log).group_offsets(&group).unwrap(), BTreeMap::new());
    new.consumer.commit(&offsets).unwrap();
}

/// A commit whose answer is lost, asked for again. `lose`: answers are lost from now on; `give_back`: no more. Each adapter has its own
/// way to do that, so this is no case of the list.
pub fn an_unknown_commit_is_asked_for_again(
    log: &dyn ClientSupplier,
    mut lose: impl FnMut(),
    mut give_back: impl FnMut(),
) {
    let topic = topic(log, 1);
    let mut producer = transactional_producer(log, &unique("tx"));
    for value in ["1", "2"] {
        producer.begin_transaction().unwrap();
        producer.send(record(&topic, 0, value)).unwrap();
        producer.flush().unwrap();
        lose();
        let unknown = producer.commit_transaction().unwrap_err();
        assert!(matches!(unknown, StreamsError::Retriable(_)), "{unknown:?}");
        give_back();
        retried("commit", || producer.commit_transaction());
    }
    assert_eq!(values(&take(&mut *reader(log, &topic, 1, true), 2)), ["1", "2"]);
}

/// Commits a record and offsets as a member that the group no longer knows so; the log refuses, and the producer, given back, may go on.
fn refused_for_identity(
    log: &dyn ClientSupplier,
    topic: &str,
    offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>,
    zombie: &GroupMetadata,
) -> Box<dyn Producer> {
    let mut producer = transactional_producer(log, &unique("tx"));
    producer.begin_transaction().unwrap();
    producer.send(record(topic, 0, "zombie")).unwrap();
    producer.flush().unwrap();
    let refused = producer
        .send_offsets_to_transaction(offsets, zombie)
        .and_then(|()| producer.commit_transaction())
        .unwrap_err();
    assert!(matches!(refused, StreamsError::TaskMigrated(_)), "{refused:?}");
    retried("abort", || producer.abort_transaction());
    producer
}
