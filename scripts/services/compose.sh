# The same services from docker-compose.yml, where a container engine answers. Sourced by ./dev.
#
# Always true: a run is a compose project of its own with ports of its own, so that runs and a developer's own
# `docker compose up` never meet.

compose_answers() {
  command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1
}

compose() {
  SLUICE_KAFKA_PORT=$(cat "$run_dir/kafka.port" 2>/dev/null || echo 9092) \
    SLUICE_REDIS_PORT=$(cat "$run_dir/redis.port" 2>/dev/null || echo 6379) \
    SLUICE_POSTGRES_PORT=$(cat "$run_dir/postgres.port" 2>/dev/null || echo 5432) \
    docker compose --project-name "sluice-$run" --file "$root/docker-compose.yml" "$@"
}

compose_up() {
  ((brokers == 1)) || die "--brokers $brokers needs local processes: SLUICE_DEV_MODE=local ./dev up --brokers $brokers"
  ((proxied == 0)) || die "--proxied $proxied needs local processes: SLUICE_DEV_MODE=local ./dev up --proxied $proxied"
  # Redis of a run keeps nothing, as the local one does: tests count on a restart giving an empty one.
  SLUICE_REDIS_APPENDONLY=no compose up --detach --wait "$@" || {
    compose logs >"$run_dir/compose.log" 2>&1 || true
    tail -n 40 "$run_dir/compose.log" >&2
    compose_down
    die "docker compose could not start $*; logs: $run_dir/compose.log"
  }
}

compose_down() {
  compose logs --no-color >"$run_dir/compose.log" 2>&1 || true
  compose down --volumes --remove-orphans --timeout 20
}

compose_action() { # service action
  case $2 in
    start) compose up --detach --wait --no-recreate "$1" ;;
    stop | kill | pause) compose "$2" "$1" ;;
    resume) compose unpause "$1" ;;
    *) die "action '$2': one of stop, start, kill, pause, resume" ;;
  esac
}
