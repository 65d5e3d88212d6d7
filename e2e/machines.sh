# shellcheck shell=bash
# The bundle, and the place where Machines run: this host, or the emulated node where its KVM does not do. Sourced after
# log.sh and packages.sh, not run. CLEARPOD_BUNDLE names a bundle that is built already.

# shellcheck disable=SC2034 # for whoever sources this
node_started=no backend='' bundle='' on_node=''

# prepare_machines: sets bundle, backend and on_node (what a command has to be put behind to run there); fails when there
# is no such place.
prepare_machines() {
  : "${repository:?}"
  ((EUID == 0)) || return 1
  bundle=${CLEARPOD_BUNDLE:-$("$CLEARPOD_LIB/bundle")}
  backend=$("$CLEARPOD_LIB/backend" "$bundle")
  if [[ $backend == kvm ]]; then
    need_packages containernetworking-plugins iptables iproute2 erofs-utils e2fsprogs curl procps
    on_node=''
  else
    if ! "$repository/deploy/node/status" >/dev/null; then
      node_started=yes
      "$repository/deploy/node/up"
    fi
    # shellcheck disable=SC2034
    on_node=$repository/deploy/node/exec
    "$repository/deploy/node/push" "$bundle" "$(dirname "$bundle")"
  fi
}

# leave_machines: ends the node if prepare_machines started it.
leave_machines() {
  [[ $node_started == no ]] || "$repository/deploy/node/down"
  node_started=no
}

# push_same_path PATH...: to where it lies here.
push_same_path() {
  local path
  for path; do
    [[ ! -e $path ]] || "$repository/deploy/node/push" "$path" "$(dirname "$path")"
  done
}
