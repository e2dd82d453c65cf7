//! Topics and records: order, content, positions, bounds.

use super::*;

pub fn creating_a_topic_twice_changes_nothing(log: &dyn ClientSupplier) {
    let name = topic(log, 3);
    let again =
        NewTopic { name: name.clone(), partitions: 5, replication_factor: -1, config: BTreeMap::new() };
    admin(log).create_topics(&[again]).unwrap();
    let unknown = unique("no-such-topic");
    let described = admin(log).describe(&[name.clone(), unknown]).unwrap();
    assert_eq!(described.keys().collect::<Vec<_>>(), [&name]);
    assert_eq!((described[&name].partitions, described[&name].replication_factor), (3, 1));
    assert!(admin(log).list_topics().unwrap().contains(&name));
    assert_eq!(admin(log).topic_config(&name).unwrap()["cleanup.policy"], "delete");

    admin(log).delete_topics(&[name.clone(), unique("no-such-topic")]).unwrap();
    until("the topic is gone", || {
        admin(log).describe(std::slice::from_ref(&name)).unwrap().is_empty().then_some(())
    });
}

pub fn records_keep_their_order_and_content(log: &dyn ClientSupplier) {
    let topic = topic(log, 2);
    let mut producer = plain_producer(log);
    let mut headers = Headers::EMPTY;
    headers.add("trace", Some(&b"a"[..]));
    headers.add("trace", Some(&b"b"[..]));
    headers.add("nothing", None::<Bytes>);
    for i in 0..2500i64 {
        let mut sent = record(&topic, (i % 2) as i32, &format!("v{i}"));
        sent.key = Some(Bytes::from(format!("k{i}")));
        sent.timestamp = Some(1_000_000 + i);
        sent.headers = if i == 3 { headers.clone() } else { Headers::EMPTY };
        producer.send(sent).unwrap();
    }
    producer.flush().unwrap();

    let mut consumer = reader(log, &topic, 2, true);
    let records = take(&mut *consumer, 2500);
    for partition in 0..2 {
        let of_one: Vec<_> = records.iter().filter(|r| r.partition == partition).collect();
        assert_eq!(of_one.len(), 1250);
        for (place, record) in of_one.into_iter().enumerate() {
            let i = place as i64 * 2 + i64::from(partition);
            assert_eq!((record.offset, record.timestamp), (place as i64, 1_000_000 + i));
            assert_eq!(record.key.as_deref(), Some(format!("k{i}").as_bytes()));
            assert_eq!(record.value.as_deref(), Some(format!("v{i}").as_bytes()));
            assert_eq!(record.headers, if i == 3 { headers.clone() } else { Headers::EMPTY });
            assert_eq!(&*record.topic, topic);
        }
    }
}

pub fn a_record_too_large_is_refused_and_the_others_are_written(log: &dyn ClientSupplier) {
    const MOST: usize = 1_000_000;
    let name = unique("narrow");
    create_with(log, &name, 1, ("max.message.bytes", &MOST.to_string()));
    let mut producer = transactional_producer(log, &unique("tx"));
    producer.begin_transaction().unwrap();
    producer.send(record(&name, 0, "before")).unwrap();
    let large = record(&name, 0, &"x".repeat(2 * MOST));
    let refused = match producer.send(large.clone()).unwrap_err() {
        StreamsError::RecordRefused(refused) => *refused,
        other => panic!("{other}"),
    };
    assert_eq!(refused.error.class, "RecordTooLargeException");
    assert_eq!((&refused.record.key, &refused.record.value), (&large.key, &large.value));
    producer.send(record(&name, 0, "after")).unwrap();
    retried("commit", || producer.commit_transaction());
    assert_eq!(values(&take(&mut *reader(log, &name, 1, true), 2)), ["before", "after"]);
}

pub fn keys_choose_partitions_as_in_java(log: &dyn ClientSupplier) {
    let topic = topic(log, 7);
    let mut producer = plain_producer(log);
    for i in 0..100 {
        let mut sent = record(&topic, 0, "v");
        (sent.partition, sent.key) = (None, Some(Bytes::from(format!("user-{i}"))));
        producer.send(sent).unwrap();
    }
    producer.flush().unwrap();
    for record in take(&mut *reader(log, &topic, 7, false), 100) {
        assert_eq!(record.partition, partition_for_key(record.key.as_deref().unwrap(), 7));
    }
}

pub fn nulls_and_empty_bytes_are_different(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    let mut producer = plain_producer(log);
    for (key, value) in [(None, Some("")), (Some(""), None), (None, None), (Some(""), Some(""))] {
        let mut sent = record(&topic, 0, "");
        sent.key = key.map(|k| Bytes::copy_from_slice(str::as_bytes(k)));
        sent.value = value.map(|v| Bytes::copy_from_slice(str::as_bytes(v)));
        producer.send(sent).unwrap();
    }
    producer.flush().unwrap();
    let got: Vec<_> = take(&mut *reader(log, &topic, 1, false), 4)
        .iter()
        .map(|r| (r.key.as_ref().map(|k| k.len()), r.value.as_ref().map(|v| v.len())))
        .collect();
    assert_eq!(got, [(None, Some(0)), (Some(0), None), (None, None), (Some(0), Some(0))]);
}

pub fn a_missing_timestamp_becomes_the_time_of_the_call(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    let now =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let before = now();
    let mut producer = plain_producer(log);
    producer.send(ProducerRecord { timestamp: None, ..record(&topic, 0, "v") }).unwrap();
    producer.flush().unwrap();
    let stamped = take(&mut *reader(log, &topic, 1, false), 1)[0].timestamp;
    assert!((before..=now()).contains(&stamped), "{stamped} is not between {before} and now");
}

pub fn seek_goes_back_and_forth(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    write(log, &topic, &["a", "b", "c", "d"]);
    let mut consumer = reader(log, &topic, 1, true);
    let partition = TopicPartition::new(topic.as_str(), 0);
    assert_eq!(values(&take(&mut *consumer, 4)), ["a", "b", "c", "d"]);
    consumer.seek(&partition, 1).unwrap();
    assert_eq!(consumer.position(&partition).unwrap(), Some(1));
    assert_eq!(values(&take(&mut *consumer, 3)), ["b", "c", "d"]);
    consumer.seek(&partition, 3).unwrap();
    assert_eq!(values(&take(&mut *consumer, 1)), ["d"]);
    assert_eq!(consumer.position(&partition).unwrap(), Some(4));
}

pub fn a_paused_partition_is_silent_until_resumed(log: &dyn ClientSupplier) {
    let topic = topic(log, 2);
    let mut consumer = reader(log, &topic, 2, true);
    let paused = [TopicPartition::new(topic.as_str(), 0)];
    consumer.pause(&paused).unwrap();
    let mut producer = plain_producer(log);
    producer.send(record(&topic, 0, "held")).unwrap();
    producer.flush().unwrap();
    producer.send(record(&topic, 1, "free")).unwrap();
    producer.flush().unwrap();
    assert_eq!(values(&take(&mut *consumer, 1)), ["free"]);
    consumer.resume(&paused).unwrap();
    assert_eq!(values(&take(&mut *consumer, 1)), ["held"]);

    // Pausing keeps the place, also at the end of the partition.
    assert!(read_to_end(&mut *consumer, &topic).is_empty());
    assert!(consumer.poll(Duration::from_millis(100)).unwrap().records.is_empty());
    consumer.pause(&paused).unwrap();
    consumer.resume(&paused).unwrap();
    producer.send(record(&topic, 0, "next")).unwrap();
    producer.flush().unwrap();
    assert_eq!(values(&take(&mut *consumer, 1)), ["next"]);
}

pub fn offset_reset_decides_without_a_committed_offset(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    write(log, &topic, &["old"]);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let assigned = |offset_reset| {
        let group_id = Some(unique("group"));
        let config = ConsumerConfig { group_id, offset_reset, ..ConsumerConfig::default() };
        let mut consumer = log.consumer(&config).unwrap();
        consumer.assign(&[(partition.clone(), None)]).unwrap();
        consumer
    };
    assert_eq!(values(&take(&mut *assigned(OffsetReset::Earliest), 1)), ["old"]);

    let mut latest = assigned(OffsetReset::Latest);
    until("the end is found", || {
        assert!(
            latest.poll(Duration::from_millis(20)).unwrap().records.is_empty(),
            "latest reads nothing old"
        );
        latest.position(&partition).unwrap()
    });
    write(log, &topic, &["new"]);
    assert_eq!(values(&take(&mut *latest, 1)), ["new"]);

    let mut none = assigned(OffsetReset::None);
    let error = until("the missing offset is reported", || none.poll(Duration::from_millis(20)).err());
    assert!(matches!(error, StreamsError::OffsetOutOfRange { .. }), "{error:?}");
    assert!(error.to_string().contains(&topic), "{error} does not name the topic");
}

pub fn watermarks_tell_first_and_end(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    let partition = TopicPartition::new(topic.as_str(), 0);
    let mut consumer = reader(log, &topic, 1, true);
    assert_eq!(consumer.watermarks(&partition).unwrap(), (0, 0));
    write(log, &topic, &["a", "b"]);
    assert_eq!(consumer.watermarks(&partition).unwrap(), (0, 2));
}

pub fn deleted_records_are_gone_for_every_reader(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    write(log, &topic, &["a", "b", "c"]);
    let partition = TopicPartition::new(topic.as_str(), 0);
    admin(log).delete_records(&BTreeMap::from([(partition.clone(), 2)])).unwrap();
    let mut consumer = reader(log, &topic, 1, true);
    assert_eq!(consumer.watermarks(&partition).unwrap(), (2, 3));
    // Its position 0 is out of range: the reset policy (earliest) takes it to what is left.
    assert_eq!(values(&take(&mut *consumer, 1)), ["c"]);

    let strict = ConsumerConfig { offset_reset: OffsetReset::None, ..ConsumerConfig::default() };
    let mut strict = log.consumer(&strict).unwrap();
    strict.assign(&[(partition.clone(), Some(0))]).unwrap();
    let error = until("the lost position is reported", || strict.poll(Duration::from_millis(20)).err());
    assert!(matches!(error, StreamsError::OffsetOutOfRange { .. }), "{error:?}");

    admin(log).delete_records(&BTreeMap::from([(partition.clone(), -1)])).unwrap();
    assert_eq!(consumer.watermarks(&partition).unwrap(), (3, 3));
}

pub fn a_zero_timeout_returns_at_once(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    let mut consumer = reader(log, &topic, 1, true);
    let before = Instant::now();
    for _ in 0..100 {
        assert!(consumer.poll(Duration::ZERO).unwrap().records.is_empty());
    }
    assert!(before.elapsed() < Duration::from_secs(2), "100 polls took {:?}", before.elapsed());
}

pub fn a_blocking_poll_returns_when_a_record_arrives(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    let mut consumer = reader(log, &topic, 1, true);
    let before = Instant::now();
    let polled = std::thread::scope(|scope| {
        let polling = scope.spawn(move || {
            until("a record comes", || {
                let records = consumer.poll(Duration::from_secs(30)).unwrap().records;
                (!records.is_empty()).then_some(records)
            })
        });
        write(log, &topic, &["a"]);
        polling.join().unwrap()
    });
    assert_eq!(values(&polled), ["a"]);
    assert!(
        before.elapsed() < Duration::from_secs(20),
        "the poll slept to its timeout: {:?}",
        before.elapsed()
    );
}

pub fn an_unknown_topic_is_an_error(log: &dyn ClientSupplier) {
    let unknown = unique("no-such-topic");
    let mut producer = plain_producer(log);
    let error = producer.partition_count(&unknown).unwrap_err().to_string();
    assert!(error.contains(&unknown), "{error} does not name the topic");
    let failed = producer.send(record(&unknown, 0, "v")).and_then(|()| producer.flush());
    let error = failed.unwrap_err().to_string();
    assert!(error.contains(&unknown), "{error} does not name the topic");
    // The failure was told once; the producer goes on.
    let known = topic(log, 1);
    producer.send(record(&known, 0, "v")).unwrap();
    producer.flush().unwrap();
    take(&mut *reader(log, &known, 1, true), 1);
}

pub fn a_poll_returns_at_most_what_was_asked_for(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    write(log, &topic, &["v"; 100]);
    let config = ConsumerConfig { max_poll_records: 7, ..ConsumerConfig::default() };
    let mut consumer = log.consumer(&config).unwrap();
    consumer.assign(&[(TopicPartition::new(topic.as_str(), 0), Some(0))]).unwrap();
    let mut offsets = Vec::new();
    until("all are read", || {
        let records = consumer.poll(Duration::from_millis(50)).unwrap().records;
        assert!(records.len() <= 7, "{} records in one poll", records.len());
        offsets.extend(records.iter().map(|r| r.offset));
        (offsets.len() >= 100).then_some(())
    });
    assert_eq!(offsets, (0..100).collect::<Vec<_>>());
}

pub fn a_time_is_found_as_an_offset(log: &dyn ClientSupplier) {
    let topic = topic(log, 1);
    let mut producer = plain_producer(log);
    for time in [1_000, 3_000, 2_000, 5_000] {
        producer.send(ProducerRecord { timestamp: Some(time), ..record(&topic, 0, "v") }).unwrap();
    }
    producer.flush().unwrap();
    let partition = TopicPartition::new(topic.as_str(), 0);
    let mut consumer = log.consumer(&ConsumerConfig::default()).unwrap();
    for (time, offset) in [(0, Some(0)), (1_000, Some(0)), (1_001, Some(1)), (3_001, Some(3)), (5_001, None)]
    {
        assert_eq!(consumer.offset_for_time(&partition, time).unwrap(), offset, "{time}");
    }
}
