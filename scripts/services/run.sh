# A run: one set of services with its own ports, data and logs under $home/runs/NAME. Sourced by ./dev.
#
# This file knows the order of things; kafka.sh, redis.sh and postgres.sh each know one service and offer
# X_packages, X_prepare, X_start, X_stop, X_kill, X_pause, X_resume, X_lives and X_address.

run='' run_dir='' services=() brokers=1 proxied=0

use_run() {
  [[ $1 =~ ^[a-z0-9-]+$ ]] || die "run '$1': only a-z, 0-9 and - in the name of a run"
  run=$1 run_dir=$home/runs/$1
  [[ ! -e $run_dir/brokers ]] || brokers=$(<"$run_dir/brokers")
  [[ ! -e $run_dir/proxied ]] || proxied=$(<"$run_dir/proxied")
  export SLUICE_SERVICES_RUN=$run SLUICE_SERVICES_DIR=$home
}

parse_run_options() {
  services=(kafka redis postgres)
  local name=${SLUICE_SERVICES_RUN:-dev} wanted_brokers=1 wanted_proxied=0
  while (($#)); do
    case $1 in
      --run) shift; name=${1:?--run needs a name} ;;
      --brokers) shift; wanted_brokers=${1:?--brokers needs a number} ;;
      --proxied) shift; wanted_proxied=${1:?--proxied needs a number} ;;
      --only) shift; IFS=, read -ra services <<<"${1:?--only needs a list like kafka,redis}" ;;
      *) die "unknown option '$1'; './dev help' lists the options" ;;
    esac
    shift
  done
  [[ $wanted_brokers =~ ^[1-9]$ ]] || die "--brokers '$wanted_brokers': a number from 1 to 9"
  [[ $wanted_proxied =~ ^[0-9]$ ]] || die "--proxied '$wanted_proxied': a number from 0 to 9"
  ((wanted_proxied == 0 || wanted_brokers == 1)) || die "--proxied goes with one broker"
  local service
  for service in "${services[@]}"; do
    [[ $service =~ ^(kafka|redis|postgres)$ ]] || die "service '$service': one of kafka, redis, postgres"
  done
  use_run "$name"
  [[ -e $run_dir/brokers ]] || brokers=$wanted_brokers proxied=$wanted_proxied
}

# compose or local: what the run was started with, or what this machine offers.
run_mode() {
  if [[ -e $run_dir/mode ]]; then
    cat "$run_dir/mode"
  elif [[ ${SLUICE_DEV_MODE:-} ]]; then
    echo "$SLUICE_DEV_MODE"
  elif compose_answers; then
    echo compose
  else
    echo local
  fi
}

run_is_up() { [[ -e $run_dir/up ]]; }

# 1. what is missing is installed, 2. ports are chosen, 3. all services start at once, 4. each is waited for until it
# answers a request of its own protocol. A service that does not start takes the others down with it.
run_up() {
  if run_is_up; then
    say "run '$run' is already up"
    return
  fi
  local mode service
  mode=$(run_mode)
  rm -rf "$run_dir"
  mkdir -p "$run_dir"
  echo "$mode" >"$run_dir/mode"
  echo "$brokers" >"$run_dir/brokers"
  echo "$proxied" >"$run_dir/proxied"
  printf '%s\n' "$@" >"$run_dir/services"
  run_choose_ports
  local t0=$SECONDS
  case $mode in
    compose) compose_up "$@" ;;
    local) local_up "$@" ;;
    *) die "SLUICE_DEV_MODE '$mode': local or compose" ;;
  esac
  touch "$run_dir/up"
  say "up in $((SECONDS - t0)) s ($mode): $(tr '\n' ' ' <"$run_dir/services")"
}

run_choose_ports() {
  local name
  for name in redis postgres $(kafka_nodes); do
    free_port >"$run_dir/$name.port"
    [[ $name != kafka* ]] || free_port >"$run_dir/$name.controller-port"
  done
  for ((name = 1; name <= proxied; name++)); do
    free_port >"$run_dir/kafka.proxied-$name-port"
    free_port >"$run_dir/kafka.proxy-$name-port"
  done
  # Twenty numbers of twelve thousand may still meet.
  [[ -z $(sort "$run_dir"/*port | uniq -d) ]] || run_choose_ports
}

local_up() {
  local service packages=() pids=() failed=()
  for service in "$@"; do
    mapfile -t -O "${#packages[@]}" packages < <("${service}_packages")
  done
  ((${#packages[@]} == 0)) || install_packages "${packages[@]}"
  for service in "$@"; do
    # No && between the two: it would switch errexit off inside them.
    (set -e; "${service}_prepare"; "${service}_start") >"$run_dir/$service.start.log" 2>&1 &
    pids+=($!)
  done
  local i=0
  for service in "$@"; do
    wait "${pids[i]}" || failed+=("$service")
    i=$((i + 1))
  done
  for service in "${failed[@]}"; do
    say "$service did not start:"
    tail -n 20 "$run_dir/$service.start.log" >&2
    compgen -G "$run_dir/$service*.log" | grep -v start.log | xargs -r tail -n 20 >&2 || true
  done
  if ((${#failed[@]})); then
    run_down
    die "did not start: ${failed[*]}; logs: $run_dir/*.log"
  fi
}

# Stops everything, deletes data and keeps logs (of the last eight runs).
run_down() {
  [[ -d $run_dir ]] || return 0
  if [[ $(run_mode) == compose ]]; then
    compose_down
  else
    kafka_kill # its data goes anyway, and of a cluster the last broker would wait for a quorum in order to stop
    redis_stop
    postgres_stop # not killed: it would leave its shared memory behind
    kafka_wipe
    redis_wipe
    postgres_wipe
  fi
  rm -f "$run_dir/up" "$run_dir/mode" "$run_dir/brokers" "$run_dir/proxied" "$run_dir"/*.start.log "$run_dir"/*port
  brokers=1 proxied=0
  local old
  for old in $(ls -1td "$home"/runs/*/ 2>/dev/null | tail -n +9); do
    [[ -e $old/mode ]] || rm -rf "$old"
  done
}

service_action() { # name action
  if [[ $(run_mode) == compose ]]; then
    compose_action "$1" "$2"
    return
  fi
  local kind=${1%%-*}
  [[ $kind =~ ^(kafka|redis|postgres)$ ]] || die "service '$1': one of kafka, kafka-N, redis, postgres"
  case $2 in
    start | stop | kill | pause | resume) "${kind}_$2" "$1" ;;
    *) die "action '$2': one of stop, start, kill, pause, resume" ;;
  esac
}

run_status() {
  run_is_up || { say "run '$run': down"; return 0; }
  echo "run '$run' ($(run_mode)), data and logs in $run_dir"
  if [[ $(run_mode) == compose ]]; then
    compose ps
    return
  fi
  local name
  while read -r name; do
    [[ $name != kafka ]] || name=$(kafka_nodes)
    for name in $name; do
      if "${name%%-*}_lives" "$name"; then
        echo "  $name  up    $("${name%%-*}_address" "$name")  pid $(<"$run_dir/$name.pid")"
      else
        echo "  $name  down  $("${name%%-*}_address" "$name")"
      fi
    done
  done <"$run_dir/services"
}

# The names that tests read. A service that is not part of the run has no name.
export_addresses() {
  unset SLUICE_TEST_KAFKA SLUICE_TEST_REDIS SLUICE_TEST_POSTGRES
  local line
  while read -r line; do
    export "${line#export }"
  done < <(print_addresses)
}

print_addresses() {
  local service
  while read -r service; do
    echo "export SLUICE_TEST_${service^^}=$("${service}_addresses")"
  done <"$run_dir/services"
  local proxy proxies=''
  for ((proxy = 1; proxy <= proxied; proxy++)); do
    proxies+=,$(<"$run_dir/kafka.proxy-$proxy-port")=$(<"$run_dir/kafka.proxied-$proxy-port")
  done
  [[ -z $proxies ]] || echo "export SLUICE_TEST_KAFKA_PROXIES=${proxies#,}"
  echo "export SLUICE_SERVICES_RUN=$run"
  echo "export SLUICE_SERVICES_DIR=$home"
}
