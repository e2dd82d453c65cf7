# The workload runner of `./dev bench`: the topologies of bench/ on a real Kafka, timed and checked.
#
# Each run is an application of its own (own group, changelogs, output topic, state), so runs never see each other. A result
# that is wrong fails the command: what is fast and wrong is not printed as a number.

bench_help() {
  cat <<'HELP'
usage: ./dev bench [OPTIONS]
  --records N        issues in the input; default 4000000. 200000 takes about a minute
  --workloads LIST   of w1,w1n,w2,w3; default all. After w2 its state is restored from the changelog (w4), then started
                     again with nothing to restore (w5)
  --modes LIST       of eos,alo; default both
  --rounds N         rounds, workloads and modes interleaved; default 1
  --threads N        stream threads; default 1
  --kafka HOST:PORT  use this cluster and leave the topics there; default: start one, delete it afterwards
  --micro [ARGS]     the micro benches (cargo bench) instead
Prints a table on standard error and one JSON line per run on standard output. records_per_cpu_second is the figure to compare.
HELP
}

bench_field() { # name json
  [[ $2 =~ \"$1\":([0-9.]+) ]] && echo "${BASH_REMATCH[1]}" || echo 0
}

bench_main() {
  local records=4000000 workloads=w1,w1n,w2,w3 modes=eos,alo rounds=1 threads=1 kafka=
  while (($#)); do
    case $1 in
      --records) records=$2 ;;
      --workloads) workloads=$2 ;;
      --modes) modes=$2 ;;
      --rounds) rounds=$2 ;;
      --threads) threads=$2 ;;
      --kafka) kafka=$2 ;;
      --micro) cargo bench "${@:2}"; return ;;
      -h | --help) bench_help; return ;;
      *) die "unknown option '$1'; './dev bench --help' lists them" ;;
    esac
    shift 2
  done
  say "building the release binary"
  cargo build --release
  bench_bin=$root/target/release/sluice
  bench_dir=$(mktemp -d)
  if [[ -z $kafka ]]; then
    use_run "bench-$$"
    trap 'run_down; rm -rf "$bench_dir"' EXIT
    trap 'exit 130' INT TERM
    run_up kafka
    export_addresses
    kafka=$SLUICE_TEST_KAFKA
  else
    trap 'rm -rf "$bench_dir"' EXIT
  fi
  export SLUICE__LOG__KIND=kafka SLUICE__KAFKA__BOOTSTRAP_SERVERS=$kafka SLUICE__STREAMS__NUM_STREAM_THREADS=$threads
  export SLUICE__TELEMETRY__LOG=${SLUICE__TELEMETRY__LOG:-warn}
  say "generating $records issues"
  SLUICE__DATA_DIR=$bench_dir/generate "$bench_bin" bench generate --records "$records" >&2
  printf '%-4s %-4s %12s %12s %9s %9s %8s %8s\n' run mode records 'per CPU s' 'per s' 'CPU s' 'RSS MB' late >&2
  local round workload mode
  for ((round = 1; round <= rounds; round++)); do
    for workload in ${workloads//,/ }; do
      for mode in ${modes//,/ }; do
        bench_workload "$workload" "$mode" "$round"
      done
    done
  done
}

bench_workload() { # workload mode round
  local workload=$1 mode=$2 app="bench-$1-$2-$3-$$" file=$bench_dir/topology.toml line
  export SLUICE__DATA_DIR=$bench_dir/$app
  case $mode in
    eos) export SLUICE__STREAMS__PROCESSING_GUARANTEE=exactly_once SLUICE__STREAMS__COMMIT_INTERVAL_MS=100 ;;
    alo) export SLUICE__STREAMS__PROCESSING_GUARANTEE=at_least_once SLUICE__STREAMS__COMMIT_INTERVAL_MS=30000 ;;
    *) die "a mode is eos or alo, not '$mode'" ;;
  esac
  sed "s/\"bench-$workload\\(-out\\)\\?\"/\"$app\\1\"/" "$root/bench/$workload.toml" >"$file"
  bench_run "$workload" "$mode" "$file"
  "$bench_bin" bench check "$workload" --records "$records" --topic "$app-out" >&2
  if [[ $workload == w2 ]]; then
    rm -rf "$bench_dir/$app/state"
    bench_run w4 "$mode" "$file"
    bench_run w5 "$mode" "$file"
  fi
  rm -rf "${bench_dir:?}/$app"
}

bench_run() { # name mode file
  local line
  line=$("$bench_bin" streams run --until-caught-up "$3" | tail -1)
  [[ $(bench_field late "$line") == 0 ]] || die "$1 $2 dropped records as late: $line"
  local count=$(bench_field records "$line") per_second=$(bench_field records_per_second "$line")
  local per_cpu=$(bench_field records_per_cpu_second "$line")
  if [[ $1 == w4 ]]; then
    count=$(bench_field restored "$line")
    per_second=$(awk "BEGIN { print int($count / $(bench_field seconds "$line")) }")
    per_cpu=$(awk "BEGIN { print int($count / $(bench_field cpu_seconds "$line")) }")
  fi
  local rss=$(($(bench_field peak_rss_bytes "$line") >> 20))
  printf '%-4s %-4s %12s %12s %9s %9s %8s %8s\n' "$1" "$2" "$count" "${per_cpu%.*}" "${per_second%.*}" \
    "$(bench_field cpu_seconds "$line")" "$rss" "$(bench_field late "$line")" >&2
  echo "{\"workload\":\"$1\",\"mode\":\"$2\",\"threads\":$threads,${line#\{}"
}
