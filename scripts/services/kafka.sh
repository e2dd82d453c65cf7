# Apache Kafka as local processes: jars from Maven Central, KRaft, one broker or a small cluster. Sourced by ./dev.
#
# Always true: a broker counts as started only after it printed "Kafka Server started" and answered a metadata request;
# its port is open earlier than that, while it still refuses to create topics.

kafka_version=4.3.1
kafka_source=$root/scripts/services/kafka
kafka_jars=$home/cache/kafka-$kafka_version

kafka_packages() {
  command -v java >/dev/null || echo default-jre-headless
  [[ -e $kafka_jars/.complete ]] || command -v mvn >/dev/null || echo maven
}

# The first broker is "kafka", so that a single one needs no number: kafka, kafka-2, kafka-3. In a command "kafka" means
# all of them, and "kafka-1" the first.
kafka_nodes() {
  echo kafka
  local n
  for ((n = 2; n <= brokers; n++)); do echo "kafka-$n"; done
}

kafka_chosen() { # name-or-empty
  case $1 in
    '' | kafka) kafka_nodes ;;
    kafka-1) echo kafka ;;
    *) echo "$1" ;;
  esac
}

kafka_number() { [[ $1 == kafka ]] && echo 1 || echo "${1#kafka-}"; }
kafka_address() { echo "127.0.0.1:$(<"$run_dir/$1.port")"; }
kafka_addresses() {
  local node all=''
  for node in $(kafka_nodes); do all+=,$(kafka_address "$node"); done
  echo "${all#,}"
}
kafka_lives() { process_lives "$run_dir/$1.pid" "$run_dir/$1/server.properties"; }

kafka_prepare() {
  kafka_fetch_jars
  local node
  for node in $(kafka_nodes); do
    mkdir -p "$run_dir/$node"
    kafka_properties "$node" >"$run_dir/$node/server.properties"
    kafka_format "$node"
  done
}

# Once per version and checkout; two runs that both find no jars must not write them at the same time.
kafka_fetch_jars() {
  mkdir -p "$home/cache"
  (
    flock 9
    [[ ! -e $kafka_jars/.complete ]] || exit 0
    echo "fetching Kafka $kafka_version from Maven Central"
    rm -rf "$kafka_jars"
    mvn -q -B -f "$kafka_source/pom.xml" -Dkafka.version="$kafka_version" dependency:copy-dependencies \
      -DoutputDirectory="$kafka_jars" -DincludeScope=runtime
    touch "$kafka_jars/.complete"
  ) 9>"$home/cache/kafka.lock" || { echo "Maven could not fetch Kafka $kafka_version: is Maven Central reachable?"; return 1; }
}

# Why the values that are not obvious: internal topics have few partitions because a first group or transaction waits for
# all of their log directories; no retention by time because test records carry event time, often years old; no delay
# before the first rebalance because every test has a group of its own; short sessions because a
# test waits for the end of one.
kafka_properties() { # node
  local replicas=$((brokers < 3 ? brokers : 3))
  local in_sync=$((replicas > 1 ? replicas - 1 : 1))
  local bootstrap='' node
  for node in $(kafka_nodes); do bootstrap+=,127.0.0.1:$(<"$run_dir/$node.controller-port"); done
  # A client that comes through a proxy must be told the proxy's address, or it would go straight to the broker.
  local listeners='' advertised='' protocols='' proxy
  for ((proxy = 1; proxy <= proxied; proxy++)); do
    listeners+=,PROXIED$proxy://127.0.0.1:$(<"$run_dir/kafka.proxied-$proxy-port")
    advertised+=,PROXIED$proxy://127.0.0.1:$(<"$run_dir/kafka.proxy-$proxy-port")
    protocols+=,PROXIED$proxy:PLAINTEXT
  done
  cat <<P
process.roles=broker,controller
node.id=$(kafka_number "$1")
listeners=PLAINTEXT://$(kafka_address "$1"),CONTROLLER://127.0.0.1:$(<"$run_dir/$1.controller-port")$listeners
advertised.listeners=PLAINTEXT://$(kafka_address "$1")$advertised
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT$protocols
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=${bootstrap#,}
log.dirs=$run_dir/$1/data
num.partitions=3
auto.create.topics.enable=false
default.replication.factor=$replicas
min.insync.replicas=$in_sync
offsets.topic.replication.factor=$replicas
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$in_sync
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=$in_sync
share.coordinator.state.topic.num.partitions=3
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.retention.ms=-1
P
}

# Any 22 characters of base64url name a cluster or a directory; fixed ones save a start of the JVM each.
kafka_format() { # node
  [[ ! -e $run_dir/$1/data/meta.properties ]] || return 0
  local quorum=(--standalone)
  if ((brokers > 1)); then
    local voters='' node
    for node in $(kafka_nodes); do
      voters+=,$(kafka_number "$node")@127.0.0.1:$(<"$run_dir/$node.controller-port"):AAAAAAAAAAAAAAAAAAAA$(kafka_number "$node")A
    done
    quorum=(--initial-controllers "${voters#,}")
  fi
  kafka_tool kafka.tools.StorageTool format "${quorum[@]}" --cluster-id AAAAAAAAAAAAAAAAAAAAAQ \
    --config "$run_dir/$1/server.properties"
}

kafka_tool() { # class args...
  java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dlog4j2.configurationFile="$kafka_source/log4j2.properties" \
    -cp "$kafka_jars/*" "$@"
}

# Without a name: every broker of the run.
kafka_start() { # [node]
  local node nodes
  nodes=$(kafka_chosen "${1:-}")
  for node in $nodes; do kafka_lives "$node" || kafka_launch "$node"; done
  for node in $nodes; do
    wait_until 180 "$node to print 'Kafka Server started' ($run_dir/$node.log)" kafka_started_or_dead "$node"
    kafka_lives "$node" || { echo "$node stopped while starting; see $run_dir/$node.log"; tail -n 20 "$run_dir/$node.log"; return 1; }
  done
  kafka_tool org.apache.kafka.tools.TopicCommand --bootstrap-server "$(kafka_addresses)" --list >/dev/null
}

kafka_launch() { # node
  touch "$run_dir/$1.log"
  wc -c <"$run_dir/$1.log" >"$run_dir/$1/log-start" # only what this start prints may count as its readiness
  setsid java -Xms512m -Xmx512m -XX:+UseG1GC -Djava.awt.headless=true \
    -Dlog4j2.configurationFile="$kafka_source/log4j2.properties" -cp "$kafka_jars/*" \
    kafka.Kafka "$run_dir/$1/server.properties" >>"$run_dir/$1.log" 2>&1 </dev/null 9>&- &
  echo $! >"$run_dir/$1.pid"
}

kafka_started_or_dead() { # node
  tail -c "+$(($(<"$run_dir/$1/log-start") + 1))" "$run_dir/$1.log" | grep -q 'Kafka Server started' || ! kafka_lives "$1"
}

kafka_each() { # node-or-empty function...
  local node nodes
  nodes=$(kafka_chosen "$1")
  shift
  for node in $nodes; do
    [[ -e $run_dir/$node.pid ]] || continue
    "$@" "$node"
  done
}

kafka_stop() { kafka_each "${1:-}" kafka_stop_one; }
kafka_stop_one() { process_stop "$run_dir/$1.pid" "$run_dir/$1/server.properties" 30; }
kafka_kill() { kafka_each "${1:-}" kafka_kill_one; }
kafka_kill_one() { process_kill "$run_dir/$1.pid" "$run_dir/$1/server.properties"; }
kafka_pause() { kafka_each "${1:-}" kafka_signal_one STOP; }
kafka_resume() { kafka_each "${1:-}" kafka_signal_one CONT; }
kafka_signal_one() { kill "-$1" "$(<"$run_dir/$2.pid")"; }
kafka_wipe() { rm -rf "$run_dir"/kafka "$run_dir"/kafka-[0-9]; }
