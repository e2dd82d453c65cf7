//! Generated names of topics and stores are refused where explicit ones are asked for (KIP-1111): they change with the topology.

use sluice::streams::{
    error::Result,
    kstream::{Consumed, KTable, Materialized, StreamsBuilder, TableJoined, TopologyConfig},
    topology::Topology,
};

/// Two tables with names, joined by a key in the value.
fn joined(
    joined: TableJoined<String, String>,
    result: Materialized<String, String>,
    left: bool,
) -> Result<Topology> {
    let config =
        TopologyConfig { ensure_explicit_internal_resource_naming: true, ..TopologyConfig::default() };
    let builder = StreamsBuilder::with_config(config);
    let table = |topic: &str| -> KTable<String, String> {
        builder.table_with(topic, Consumed::default(), Materialized::named(topic))
    };
    let (people, towns) = (table("people"), table("towns"));
    let table = match left {
        true => {
            people.left_join_on_with(&towns, |_, v| Ok(v.cloned()), |_, _, n| Ok(n.cloned()), joined, result)
        }
        false => people.join_on_with(&towns, |_, v| Ok(v.cloned()), |_, _, n| Ok(n.cloned()), joined, result),
    };
    table.to_stream().to("out");
    builder.build("app")
}

#[test]
fn a_foreign_key_join_without_a_name_is_refused() {
    for left in [false, true] {
        let error =
            joined(TableJoined::default(), Materialized::named("homes"), left).err().unwrap().to_string();
        assert!(error.contains("has a generated name"), "{error}");
        assert!(error.contains("KTABLE-FK-JOIN-SUBSCRIPTION"), "{error}");
        let named = joined(TableJoined::named("home"), Materialized::named("homes"), left).unwrap();
        let text = named.describe();
        assert!(text.contains("home-subscription-registration-topic"), "{text}");
        assert!(!text.contains("KTABLE-FK-JOIN"), "{text}");
    }
}
