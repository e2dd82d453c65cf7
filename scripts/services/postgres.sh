# Postgres as a local process on a private data directory. Sourced by ./dev.
#
# Always true: fsync stays on (durability is what the ledger is for, and speed claimed without it would be a lie), and the
# server runs as an unprivileged user, because initdb refuses root.

postgres_packages() { postgres_bin >/dev/null || echo postgresql; }

# The newest version that Debian has put aside, or whatever is on the path.
postgres_bin() {
  local initdb
  initdb=$(ls -1v /usr/lib/postgresql/*/bin/initdb 2>/dev/null | tail -n 1) || true
  [[ $initdb ]] || initdb=$(command -v initdb) || return 1
  dirname "$initdb"
}

postgres_address() { echo "postgres://sluice@127.0.0.1:$(<"$run_dir/postgres.port")/sluice"; }
postgres_addresses() { postgres_address; }
postgres_lives() { process_lives "$run_dir/postgres.pid" "$(cat "$run_dir/postgres.data" 2>/dev/null || echo none)"; }

# Runs a program of Postgres as a user who is not root.
postgres_do() { # program args...
  local program=$1 user=postgres
  shift
  if ((EUID != 0)); then
    "$(postgres_bin)/$program" "$@"
    return
  fi
  id "$user" >/dev/null 2>&1 || user=nobody
  (cd / && runuser -u "$user" -- "$(postgres_bin)/$program" "$@")
}

postgres_prepare() {
  local base=$run_dir
  if ((EUID == 0)); then
    # A checkout below a private home directory is out of reach for the unprivileged user.
    runuser -u "$(id -un postgres 2>/dev/null || echo nobody)" -- test -x "$run_dir" || base=${TMPDIR:-/tmp}
  fi
  local data
  data=$(mktemp -d "$base/postgres.XXXXXX")
  echo "$data" >"$run_dir/postgres.data"
  ((EUID != 0)) || chown "$(id -un postgres 2>/dev/null || echo nobody)" "$data"
  postgres_do initdb -D "$data" -U sluice --auth=trust -E UTF8 --no-locale --no-sync
}

postgres_start() {
  ! postgres_lives || return 0
  local data port
  data=$(<"$run_dir/postgres.data") port=$(<"$run_dir/postgres.port")
  rm -f "$data/postmaster.pid" # of a killed one
  postgres_launch "$data" "$port"
  wait_until 30 "Postgres to answer a query ($run_dir/postgres.log)" postgres_answers
  postgres_query -d postgres -tAc "select 1 from pg_database where datname = 'sluice'" | grep -q 1 ||
    postgres_query -d postgres -c 'create database sluice'
}

postgres_launch() { # data port
  local options="-p $2 -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=300"
  postgres_do pg_ctl start -D "$1" -W -o "$options" >>"$run_dir/postgres.log" 2>&1 </dev/null
  wait_until 10 "Postgres to write its process id" test -s "$1/postmaster.pid"
  head -n 1 "$1/postmaster.pid" >"$run_dir/postgres.pid"
}

postgres_query() { postgres_do psql -X -q -h 127.0.0.1 -p "$(<"$run_dir/postgres.port")" -U sluice "$@"; }
postgres_answers() { postgres_query -d postgres -c 'select 1' >/dev/null 2>&1; }

postgres_stop() {
  [[ -e $run_dir/postgres.pid ]] || return 0
  postgres_resume 2>/dev/null || true
  # Fast: clients are cut off, committed work is flushed.
  ! postgres_lives || kill -INT "$(<"$run_dir/postgres.pid")"
  wait_until 30 "Postgres to stop" process_gone "$run_dir/postgres.pid" "$(<"$run_dir/postgres.data")" || postgres_kill
  rm -f "$run_dir/postgres.pid"
}

# As a power cut would: the server and every one of its children at once.
postgres_kill() {
  [[ -e $run_dir/postgres.pid ]] || return 0
  local all
  all=$(postgres_processes)
  # shellcheck disable=SC2086  # a list of process ids
  kill -9 $all 2>/dev/null || true
  wait_until 10 "killed Postgres to go" process_gone "$run_dir/postgres.pid" "$(<"$run_dir/postgres.data")"
  rm -f "$run_dir/postgres.pid"
}

# shellcheck disable=SC2046  # a list of process ids
postgres_pause() { kill -STOP $(postgres_processes); }
# shellcheck disable=SC2046
postgres_resume() { kill -CONT $(postgres_processes); }

postgres_processes() {
  local pid
  pid=$(<"$run_dir/postgres.pid")
  echo "$pid" $(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
}

postgres_wipe() {
  [[ ! -e $run_dir/postgres.data ]] || rm -rf "$(<"$run_dir/postgres.data")" "$run_dir/postgres.data"
}
