# shellcheck shell=bash
# Where Machines run, for e2e/run and e2e/bench: this host if its KVM does, else the emulated node. Sourced after log.sh and
# packages.sh. CLEARPOD_BUNDLE names a bundle that is built already.

repository=${repository:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}

# What prepare_machines finds: kvm or emulated; the bundle's directory; what to put before a command so that it runs there.
backend='' bundle='' on_node=''
# A node that somebody else started is used and left as it is.
node_started=no

# prepare_machines: the bundle, and the place where Machines run; fails when there is none.
# shellcheck disable=SC2034 # on_node is for those who source this
prepare_machines() {
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
    on_node=$repository/deploy/node/exec
    "$repository/deploy/node/push" "$bundle" "$(dirname "$bundle")"
  fi
}

# end_node: if it was started here.
end_node() {
  [[ $node_started == no ]] || "$repository/deploy/node/down"
  node_started=no
}

# machines_environment: prints what programs on the node are told by their environment, one NAME=VALUE a line.
machines_environment() {
  printf '%s\n' "CLEARPOD_BUNDLE=$bundle" "CLEARPOD_BACKEND=$backend" \
    "CLEARPOD_VMLINUX=$bundle/share/vmlinux" "CLEARPOD_INITRAMFS=$bundle/share/initramfs.cpio" \
    "PATH=$bundle/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

# push_same_path PATH...: those that exist, to where they are here.
push_same_path() {
  local path
  for path; do
    [[ ! -e $path ]] || "$repository/deploy/node/push" "$path" "$(dirname "$path")"
  done
}

# executables FOLDER CARGO-ARGUMENT...: builds and prints the paths of the programs that cargo made from that folder of a
# package, tests or benches.
executables() {
  local folder=$1 told
  shift
  told=$(cargo "$@" 2>&1) || {
    echo "$told" >&2
    return 1
  }
  sed -n "s/^ *Executable $folder.*(\(.*\))\$/\1/p" <<<"$told" | while IFS= read -r path; do realpath "$path"; done
}
