# Words, waiting, ports and packages: what every part of ./dev needs. Sourced, never run.

say() { printf '\033[2m[dev]\033[0m %s\n' "$*" >&2; }
die() { printf '[dev] error: %s\n' "$*" >&2; exit 1; }

# Calls a condition until it holds; nothing here ever waits for a fixed time instead.
wait_until() { # seconds what command...
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    ((SECONDS < deadline)) || { printf '[dev] gave up waiting for %s\n' "$what" >&2; return 1; }
    sleep 0.05
  done
}

port_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# A free port below the range that the kernel hands out to clients, so that no outgoing connection can take it
# between this answer and the service's bind.
free_port() {
  local port
  while :; do
    port=$((RANDOM % 12000 + 20000))
    port_answers "$port" || { echo "$port"; return; }
  done
}

# True while the process in the file lives and is still the one we started (ids are reused).
process_lives() { # pid-file word-in-its-command-line
  local pid
  pid=$(cat "$1" 2>/dev/null) || return 1
  kill -0 "$pid" 2>/dev/null || return 1
  [[ ! -r /proc/$pid/cmdline ]] || tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF -- "$2"
}

process_gone() { ! process_lives "$@"; }

# Asks politely, then insists.
process_stop() { # pid-file word seconds
  process_lives "$1" "$2" || { rm -f "$1"; return 0; }
  local pid
  pid=$(<"$1")
  kill -CONT "$pid" 2>/dev/null || true # a paused process cannot hear the request
  kill "$pid" 2>/dev/null || true
  wait_until "$3" "process $pid to stop" process_gone "$1" "$2" || kill -9 "$pid" 2>/dev/null || true
  rm -f "$1"
}

process_kill() { # pid-file word
  if process_lives "$1" "$2"; then
    kill -9 "$(<"$1")"
    wait_until 10 "killed process to go" process_gone "$1" "$2"
  fi
  rm -f "$1"
}

# Installs Debian packages; the caller has already found that they are absent.
install_packages() {
  local as_root=()
  command -v apt-get >/dev/null ||
    die "needed but absent: $*. There is no apt-get here: install them by hand, or start a container engine (docker info)."
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "needed but absent: $*. Run as root, or install sudo, or install them by hand."
    as_root=(sudo)
    [[ -z ${CI:-} ]] || as_root+=(-n) # nobody is there to type a password
  fi
  say "installing $*"
  local log=$home/apt.log
  # RUNLEVEL=1 keeps the packages from starting their system services, which nothing here uses.
  local install=("${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
  "${install[@]}" install -y -q --no-install-recommends "$@" >"$log" 2>&1 ||
    { "${install[@]}" update -q >>"$log" 2>&1 && "${install[@]}" install -y -q --no-install-recommends "$@" >>"$log" 2>&1; } ||
    { tail -15 "$log" >&2; die "apt-get could not install $*; whole output: $log"; }
}
