# Redis as a local process. Sourced by ./dev.
#
# Always true: nothing is evicted (the gate is a set of seats, not a cache) and nothing is persisted, so a kill and a start
# give an empty Redis: exactly the fault that the gate must survive.

redis_packages() { command -v redis-server >/dev/null || echo redis-server; }
redis_address() { echo "redis://127.0.0.1:$(<"$run_dir/redis.port")"; }
redis_addresses() { redis_address; }
redis_lives() { process_lives "$run_dir/redis.pid" ":$(cat "$run_dir/redis.port" 2>/dev/null)"; }
redis_prepare() { mkdir -p "$run_dir/redis"; }

redis_start() {
  ! redis_lives || return 0
  setsid redis-server --bind 127.0.0.1 --port "$(<"$run_dir/redis.port")" --dir "$run_dir/redis" --save '' --appendonly no \
    --maxmemory-policy noeviction --daemonize no >>"$run_dir/redis.log" 2>&1 </dev/null &
  echo $! >"$run_dir/redis.pid"
  wait_until 20 "Redis to answer PING ($run_dir/redis.log)" redis_answers
}

redis_answers() {
  local answer
  { exec 3<>"/dev/tcp/127.0.0.1/$(<"$run_dir/redis.port")"; } 2>/dev/null || return 1
  printf 'PING\r\n' >&3
  read -r -t 1 answer <&3
  exec 3>&-
  [[ $answer == +PONG* ]]
}

redis_stop() { process_stop "$run_dir/redis.pid" redis-server 10; }
redis_kill() { process_kill "$run_dir/redis.pid" redis-server; }
redis_pause() { kill -STOP "$(<"$run_dir/redis.pid")"; }
redis_resume() { kill -CONT "$(<"$run_dir/redis.pid")"; }
redis_wipe() { rm -rf "$run_dir/redis"; }
