//! The Kafka [`Admin`]: librdkafka's admin requests, each awaited where it is made.
//!
//! Every request has a queue of its own for its one answer, so that callers on several threads do not mix theirs.

use std::{
    collections::BTreeMap,
    ffi::c_char,
    ptr,
    time::{Duration, Instant},
};

use rdkafka::bindings::{self as rd, rd_kafka_admin_op_t as Op, rd_kafka_resp_err_t as Code};

use super::{
    KafkaConfig, error,
    native::{Conf, Handle, PartitionList, Queue, REQUEST_TIMEOUT, c_string, millis, read_list, text},
};
use crate::streams::{
    client::{Admin, GroupMember, NewTopic, OffsetAndMetadata, TopicDescription},
    error::{Result, StreamsError},
    record::TopicPartition,
};

/// How long a new topic may take until all its partitions have a leader.
const TOPIC_READY_WAIT: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct KafkaAdmin {
    client: Handle,
}

/// An answer, destroyed when dropped.
struct Answer(*mut rd::rd_kafka_event_t);

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { rd::rd_kafka_event_destroy(self.0) };
    }
}

/// Objects made for one request, destroyed with it.
struct Made<T> {
    items: Vec<*mut T>,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Drop for Made<T> {
    fn drop(&mut self) {
        for item in &self.items {
            // SAFETY: made by the constructor that belongs to `destroy`; requests copy what they need.
            unsafe { (self.destroy)(*item) };
        }
    }
}

/// # Safety
/// `list` has `count` valid pointers.
unsafe fn slice_of<'a, T>(list: *mut *const T, count: usize) -> &'a [*const T] {
    // SAFETY: promised by the caller.
    if count == 0 { &[] } else { unsafe { std::slice::from_raw_parts(list, count) } }
}

/// A topic as the cluster's metadata has it.
struct Seen {
    description: TopicDescription,
    /// Every partition has a leader.
    ready: bool,
}

impl KafkaAdmin {
    pub(super) fn new(cluster: &KafkaConfig) -> Result<Self> {
        let mut conf = Conf::for_cluster(cluster)?;
        conf.set_all(cluster.properties_for("admin"))?;
        Ok(Self { client: Handle::new(rd::rd_kafka_type_t::RD_KAFKA_PRODUCER, conf)? })
    }

    /// Makes a request and waits for its answer.
    fn request(
        &self,
        what: &str,
        op: Op,
        send: impl FnOnce(*mut rd::rd_kafka_t, *const rd::rd_kafka_AdminOptions_t, *mut rd::rd_kafka_queue_t),
    ) -> Result<Answer> {
        let client = self.client.as_ptr();
        // SAFETY: valid client; the options are copied by the request.
        let event = unsafe {
            let queue = Queue::of(rd::rd_kafka_queue_new(client));
            let options = rd::rd_kafka_AdminOptions_new(client, op);
            let mut reason: [c_char; 256] = [0; 256];
            let timeout = millis(REQUEST_TIMEOUT * 2);
            rd::rd_kafka_AdminOptions_set_request_timeout(
                options,
                timeout,
                reason.as_mut_ptr(),
                reason.len(),
            );
            send(client, options, queue.as_ptr());
            rd::rd_kafka_AdminOptions_destroy(options);
            rd::rd_kafka_queue_poll(queue.as_ptr(), millis(REQUEST_TIMEOUT * 3))
        };
        if event.is_null() {
            return Err(StreamsError::Retriable(format!("kafka: {what}: no answer")));
        }
        let answer = Answer(event);
        // SAFETY: a valid event.
        match unsafe { rd::rd_kafka_event_error(event) } {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(answer),
            code => Err(error::of_code(what, code)),
        }
    }

    /// All topics of the cluster. Asking for all creates none, whatever the broker's settings.
    fn topics(&self) -> Result<BTreeMap<String, Seen>> {
        let mut metadata = ptr::null();
        // SAFETY: valid client; the metadata is ours when the call succeeds.
        unsafe {
            let code = rd::rd_kafka_metadata(
                self.client.as_ptr(),
                1,
                ptr::null_mut(),
                &mut metadata,
                millis(REQUEST_TIMEOUT),
            );
            if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(error::of_code("reading the topics", code));
            }
            let mut topics = BTreeMap::new();
            for index in 0..(*metadata).topic_cnt as usize {
                let topic = &*(*metadata).topics.add(index);
                if topic.err != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                    continue;
                }
                let partitions = || (0..topic.partition_cnt as usize).map(|p| &*topic.partitions.add(p));
                let description = TopicDescription {
                    name: text(topic.topic),
                    partitions: topic.partition_cnt,
                    replication_factor: partitions().find(|p| p.id == 0).map_or(0, |p| p.replica_cnt),
                };
                let ready = topic.partition_cnt > 0 && partitions().all(|p| p.leader >= 0);
                topics.insert(description.name.clone(), Seen { description, ready });
            }
            rd::rd_kafka_metadata_destroy(metadata);
            Ok(topics)
        }
    }

    /// The outcome of a request about one group.
    ///
    /// # Safety
    /// `list` has `count` valid results.
    unsafe fn group_result(
        &self,
        what: &str,
        list: *mut *const rd::rd_kafka_group_result_t,
        count: usize,
        ignore: &[Code],
    ) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
        let mut offsets = BTreeMap::new();
        // SAFETY: promised by the caller; results live as long as their answer.
        unsafe {
            for result in slice_of(list, count) {
                let failure = rd::rd_kafka_group_result_error(*result);
                let code = match failure.is_null() {
                    true => Code::RD_KAFKA_RESP_ERR_NO_ERROR,
                    false => rd::rd_kafka_error_code(failure),
                };
                if ignore.contains(&code) {
                    continue;
                }
                refuse(what, code)?;
                for element in read_list(rd::rd_kafka_group_result_partitions(*result)) {
                    refuse(&format!("{what}, {}", element.tp), element.code)?;
                    if element.offset >= 0 {
                        let value = OffsetAndMetadata { offset: element.offset, metadata: element.metadata };
                        offsets.insert(element.tp, value);
                    }
                }
            }
        }
        Ok(offsets)
    }
}

/// A refusal of an administrative request. Membership codes mean an active group here, nobody was fenced.
fn refuse(what: &str, code: Code) -> Result<()> {
    match code {
        Code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        Code::RD_KAFKA_RESP_ERR_NON_EMPTY_GROUP | Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID => {
            Err(StreamsError::Fatal(format!("kafka: {what}: the group has active members; stop them first")))
        }
        code => Err(error::of_code(what, code)),
    }
}

impl Admin for KafkaAdmin {
    fn create_topics(&self, topics: &[NewTopic]) -> Result<()> {
        if topics.is_empty() {
            return Ok(());
        }
        let mut made = Made { items: Vec::new(), destroy: rd::rd_kafka_NewTopic_destroy };
        for topic in topics {
            let name = c_string("topic", &topic.name)?;
            let mut reason: [c_char; 256] = [0; 256];
            // SAFETY: valid strings and buffer.
            let (new, reason) = unsafe {
                let new = rd::rd_kafka_NewTopic_new(
                    name.as_ptr(),
                    topic.partitions,
                    topic.replication_factor,
                    reason.as_mut_ptr(),
                    reason.len(),
                );
                (new, text(reason.as_ptr()))
            };
            if new.is_null() {
                return Err(StreamsError::Fatal(format!(
                    "kafka: cannot create topic {:?}: {reason}",
                    topic.name
                )));
            }
            made.items.push(new);
            for (key, value) in &topic.config {
                let (key, value) = (c_string("topic setting", key)?, c_string("topic setting", value)?);
                // SAFETY: valid strings, copied by the call.
                let code = unsafe { rd::rd_kafka_NewTopic_set_config(new, key.as_ptr(), value.as_ptr()) };
                refuse(&format!("setting {key:?} of topic {:?}", topic.name), code)?;
            }
        }
        let answer =
            self.request("creating topics", Op::RD_KAFKA_ADMIN_OP_CREATETOPICS, |client, options, queue| {
                // SAFETY: the list is valid during the call, which copies it.
                unsafe {
                    let items = made.items.as_mut_ptr();
                    rd::rd_kafka_CreateTopics(client, items, made.items.len(), options, queue)
                };
            })?;
        // SAFETY: the answer is one to this request and lives to the end of the block.
        unsafe {
            let mut count = 0;
            let result = rd::rd_kafka_event_CreateTopics_result(answer.0);
            let list = rd::rd_kafka_CreateTopics_result_topics(result, &mut count);
            for topic in slice_of(list, count) {
                let code = rd::rd_kafka_topic_result_error(*topic);
                if code != Code::RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS {
                    let name = text(rd::rd_kafka_topic_result_name(*topic));
                    let reason = text(rd::rd_kafka_topic_result_error_string(*topic));
                    refuse(&format!("creating topic {name:?} ({reason})"), code)?;
                }
            }
        }
        // A record sent to a partition without a leader can throw an idempotent producer out of step: wait for them.
        let until = Instant::now() + TOPIC_READY_WAIT;
        loop {
            let seen = self.topics()?;
            let missing = topics.iter().find(|t| !seen.get(&t.name).is_some_and(|s| s.ready));
            match missing {
                None => return Ok(()),
                Some(topic) if Instant::now() >= until => {
                    return Err(StreamsError::Retriable(format!(
                        "kafka: topic {:?} was created and has no leader after {TOPIC_READY_WAIT:?}",
                        topic.name
                    )));
                }
                // Nothing tells when metadata has spread.
                Some(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn describe(&self, topics: &[String]) -> Result<BTreeMap<String, TopicDescription>> {
        let seen = self.topics()?;
        let wanted = seen.into_iter().filter(|(name, _)| topics.contains(name));
        Ok(wanted.map(|(name, seen)| (name, seen.description)).collect())
    }

    fn list_topics(&self) -> Result<Vec<String>> {
        Ok(self.topics()?.into_keys().collect())
    }

    fn delete_topics(&self, topics: &[String]) -> Result<()> {
        if topics.is_empty() {
            return Ok(());
        }
        let mut made = Made { items: Vec::new(), destroy: rd::rd_kafka_DeleteTopic_destroy };
        for topic in topics {
            let name = c_string("topic", topic)?;
            // SAFETY: a valid string.
            made.items.push(unsafe { rd::rd_kafka_DeleteTopic_new(name.as_ptr()) });
        }
        let answer =
            self.request("deleting topics", Op::RD_KAFKA_ADMIN_OP_DELETETOPICS, |client, options, queue| {
                // SAFETY: the list is valid during the call.
                unsafe {
                    let items = made.items.as_mut_ptr();
                    rd::rd_kafka_DeleteTopics(client, items, made.items.len(), options, queue)
                };
            })?;
        // SAFETY: the answer is one to this request.
        unsafe {
            let mut count = 0;
            let result = rd::rd_kafka_event_DeleteTopics_result(answer.0);
            let list = rd::rd_kafka_DeleteTopics_result_topics(result, &mut count);
            for topic in slice_of(list, count) {
                let code = rd::rd_kafka_topic_result_error(*topic);
                if code != Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART {
                    let name = text(rd::rd_kafka_topic_result_name(*topic));
                    refuse(&format!("deleting topic {name:?}"), code)?;
                }
            }
        }
        Ok(())
    }

    fn delete_records(&self, before: &BTreeMap<TopicPartition, i64>) -> Result<()> {
        if before.is_empty() {
            return Ok(());
        }
        let mut list = PartitionList::new();
        before.iter().try_for_each(|(tp, offset)| list.add(&tp.topic, tp.partition, *offset))?;
        let mut made = Made { items: Vec::new(), destroy: rd::rd_kafka_DeleteRecords_destroy };
        // SAFETY: a valid list, copied by the call.
        made.items.push(unsafe { rd::rd_kafka_DeleteRecords_new(list.as_ptr()) });
        let op = Op::RD_KAFKA_ADMIN_OP_DELETERECORDS;
        let answer = self.request("deleting records", op, |client, options, queue| {
            // SAFETY: the list is valid during the call.
            unsafe { rd::rd_kafka_DeleteRecords(client, made.items.as_mut_ptr(), 1, options, queue) };
        })?;
        // SAFETY: the answer is one to this request.
        unsafe {
            let result = rd::rd_kafka_event_DeleteRecords_result(answer.0);
            for element in read_list(rd::rd_kafka_DeleteRecords_result_offsets(result)) {
                refuse(&format!("deleting records of {}", element.tp), element.code)?;
            }
        }
        Ok(())
    }

    fn topic_config(&self, topic: &str) -> Result<BTreeMap<String, String>> {
        let name = c_string("topic", topic)?;
        let mut made = Made { items: Vec::new(), destroy: rd::rd_kafka_ConfigResource_destroy };
        let kind = rd::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
        // SAFETY: a valid string.
        made.items.push(unsafe { rd::rd_kafka_ConfigResource_new(kind, name.as_ptr()) });
        let what = format!("configuration of topic {topic:?}");
        let answer =
            self.request(&what, Op::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, |client, options, queue| {
                // SAFETY: the list is valid during the call.
                unsafe { rd::rd_kafka_DescribeConfigs(client, made.items.as_mut_ptr(), 1, options, queue) };
            })?;
        let mut config = BTreeMap::new();
        // SAFETY: the answer is one to this request; entries live as long as it.
        unsafe {
            let mut count = 0;
            let result = rd::rd_kafka_event_DescribeConfigs_result(answer.0);
            let resources = rd::rd_kafka_DescribeConfigs_result_resources(result, &mut count);
            for resource in slice_of(resources, count) {
                refuse(&what, rd::rd_kafka_ConfigResource_error(*resource))?;
                let mut entries = 0;
                let list = rd::rd_kafka_ConfigResource_configs(*resource, &mut entries);
                for entry in slice_of(list, entries) {
                    let name = text(rd::rd_kafka_ConfigEntry_name(*entry));
                    config.insert(name, text(rd::rd_kafka_ConfigEntry_value(*entry)));
                }
            }
        }
        Ok(config)
    }

    fn group_offsets(&self, group_id: &str) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
        let group = c_string("group", group_id)?;
        let mut made = Made { items: Vec::new(), destroy: rd::rd_kafka_ListConsumerGroupOffsets_destroy };
        // SAFETY: a valid string; no list means all partitions.
        made.items.push(unsafe { rd::rd_kafka_ListConsumerGroupOffsets_new(group.as_ptr(), ptr::null()) });
        let what = format!("offsets of group {group_id:?}");
        let op = Op::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS;
        let answer = self.request(&what, op, |client, options, queue| {
            // SAFETY: the list is valid during the call.
            unsafe {
                rd::rd_kafka_ListConsumerGroupOffsets(client, made.items.as_mut_ptr(), 1, options, queue)
            };
        })?;
        // SAFETY: the answer is one to this request.
        unsafe {
            let mut count = 0;
            let result = rd::rd_kafka_event_ListConsumerGroupOffsets_result(answer.0);
            let list = rd::rd_kafka_ListConsumerGroupOffsets_result_groups(result, &mut count);
            self.group_result(&what, list, count, &[Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND])
        }
    }

    fn group_members(&self, group_id: &str) -> Result<Vec<GroupMember>> {
        let group = c_string("group", group_id)?;
        let what = format!("members of group {group_id:?}");
        let answer =
            self.request(&what, Op::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, |client, options, queue| {
                let mut names = [group.as_ptr()];
                // SAFETY: the name is valid during the call, which copies it.
                unsafe { rd::rd_kafka_DescribeConsumerGroups(client, names.as_mut_ptr(), 1, options, queue) };
            })?;
        let mut members = Vec::new();
        // SAFETY: the answer is one to this request; what is in it lives as long.
        unsafe {
            let mut count = 0;
            let result = rd::rd_kafka_event_DescribeConsumerGroups_result(answer.0);
            let groups = rd::rd_kafka_DescribeConsumerGroups_result_groups(result, &mut count);
            for group in slice_of(groups, count) {
                let failure = rd::rd_kafka_ConsumerGroupDescription_error(*group);
                if !failure.is_null() {
                    let code = rd::rd_kafka_error_code(failure);
                    if code == Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND {
                        continue;
                    }
                    refuse(&what, code)?;
                }
                for index in 0..rd::rd_kafka_ConsumerGroupDescription_member_count(*group) {
                    let member = rd::rd_kafka_ConsumerGroupDescription_member(*group, index);
                    let name = rd::rd_kafka_MemberDescription_group_instance_id(member);
                    members.push(GroupMember {
                        member_id: text(rd::rd_kafka_MemberDescription_consumer_id(member)),
                        group_instance_id: (!name.is_null()).then(|| text(name)),
                    });
                }
            }
        }
        Ok(members)
    }

    fn alter_group_offsets(
        &self,
        group_id: &str,
        offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>,
    ) -> Result<()> {
        if offsets.is_empty() {
            return Ok(());
        }
        let (group, list) = (c_string("group", group_id)?, PartitionList::of_offsets(offsets)?);
        let mut made = Made { items: Vec::new(), destroy: rd::rd_kafka_AlterConsumerGroupOffsets_destroy };
        // SAFETY: valid string and list, copied by the call.
        made.items.push(unsafe { rd::rd_kafka_AlterConsumerGroupOffsets_new(group.as_ptr(), list.as_ptr()) });
        let what = format!("setting offsets of group {group_id:?}");
        let op = Op::RD_KAFKA_ADMIN_OP_ALTERCONSUMERGROUPOFFSETS;
        let answer = self.request(&what, op, |client, options, queue| {
            // SAFETY: the list is valid during the call.
            unsafe {
                rd::rd_kafka_AlterConsumerGroupOffsets(client, made.items.as_mut_ptr(), 1, options, queue)
            };
        })?;
        // SAFETY: the answer is one to this request.
        unsafe {
            let mut count = 0;
            let result = rd::rd_kafka_event_AlterConsumerGroupOffsets_result(answer.0);
            let list = rd::rd_kafka_AlterConsumerGroupOffsets_result_groups(result, &mut count);
            self.group_result(&what, list, count, &[]).map(|_| ())
        }
    }

    fn delete_group(&self, group_id: &str) -> Result<()> {
        let group = c_string("group", group_id)?;
        let mut made = Made { items: Vec::new(), destroy: rd::rd_kafka_DeleteGroup_destroy };
        // SAFETY: a valid string.
        made.items.push(unsafe { rd::rd_kafka_DeleteGroup_new(group.as_ptr()) });
        let what = format!("deleting group {group_id:?}");
        let answer = self.request(&what, Op::RD_KAFKA_ADMIN_OP_DELETEGROUPS, |client, options, queue| {
            // SAFETY: the list is valid during the call.
            unsafe { rd::rd_kafka_DeleteGroups(client, made.items.as_mut_ptr(), 1, options, queue) };
        })?;
        // SAFETY: the answer is one to this request.
        unsafe {
            let mut count = 0;
            let result = rd::rd_kafka_event_DeleteGroups_result(answer.0);
            let list = rd::rd_kafka_DeleteGroups_result_groups(result, &mut count);
            self.group_result(&what, list, count, &[Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND]).map(|_| ())
        }
    }
}
