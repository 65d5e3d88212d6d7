# shellcheck shell=bash
# Servers that a script starts for its own time: waiting until one answers, ending it. Sourced after log.sh, not run. What
# went wrong is left in $cause.

# shellcheck disable=SC2034 # for whoever sources this
cause=''

# wait_for SECONDS TEXT COMMAND...: until the command succeeds; TEXT is the cause when it does not.
wait_for() {
  local deadline=$((SECONDS + $1)) text=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= deadline)); then
      cause=$text
      return 1
    fi
    sleep 0.2
  done
}

# wait_for_server PID LOG COMMAND...: until the command succeeds, as long as that process lives and for 30 s at most.
wait_for_server() {
  local pid=$1 log=$2
  shift 2
  if wait_for 30 "" answered_or_dead "$pid" "$@" && kill -0 "$pid" 2>/dev/null; then return; fi
  cause="no answer; the end of its log: $(tail -n 3 "$log")"
  return 1
}

answered_or_dead() {
  kill -0 "$1" 2>/dev/null || return 0
  "${@:2}"
}

# start_registry SERVE DIRECTORY LOG: on a port of its own choice; sets registry_pid and registry_port.
start_registry() {
  registry_port=$((20000 + SRANDOM % 12000))
  "$1" "$registry_port" "$2" >"$3" 2>&1 </dev/null &
  # shellcheck disable=SC2034 # for the caller
  registry_pid=$!
}

# write_daemon_config BUNDLE RUN STATE BRIDGE: RUN/config.toml of a clearpod that lies in RUN and STATE alone, and in RUN/net.d
# a pod network of its own, so that it meets no other on this host.
write_daemon_config() {
  local bundle=$1 run=$2 state=$3 bridge=$4
  mkdir "$run/net.d"
  sed -e "s,\"cni0\",\"$bridge\"," -e "s,/run/cni/networks,$run/ipam," -e 's,10\.88\.,10.213.,' -e 's,fd00:10:88:,fd00:10:213:,' \
    "$bundle/deploy/cni/10-clearpod.conflist" >"$run/net.d/10-own.conflist"
  cat >"$run/config.toml" <<TOML
state = "$state"
run = "$run"
[machine]
vmm = "$bundle/bin/clearpod-vmm"
virtiofsd = "$bundle/bin/virtiofsd"
kernel = "$bundle/share/vmlinux"
initramfs = "$bundle/share/initramfs.cpio"
[image]
root = "$state/images"
[network]
conf_dir = "$run/net.d"
cache_dir = "$run/cni"
TOML
}

# end_process PID...: politely, and after 15 s by force. Each is a child of this shell; an empty one is passed over.
end_process() {
  local pid
  for pid; do
    [[ -n $pid ]] || continue
    kill "$pid" 2>/dev/null || continue
    timeout 15 tail --pid="$pid" -f /dev/null || kill -KILL "$pid"
    wait "$pid" 2>/dev/null || true
  done
}
