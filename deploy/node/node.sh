# shellcheck shell=bash
# What the node's commands share: where its files lie, and ssh into it. Sourced, not run; the emulated node is one QEMU
# process whose state is the directory $node_dir, and whose image is shared by all nodes of this user.

node_home=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CLEARPOD_LIB=$(cd "$node_home/../lib" && pwd)
# shellcheck source=deploy/lib/log.sh
. "$CLEARPOD_LIB/log.sh"

clearpod_cache=${CLEARPOD_CACHE:-$HOME/.cache/clearpod}
node_dir=${CLEARPOD_NODE_DIR:-$(cd "$node_home/../.." && pwd)/target/node}

# shellcheck disable=SC2034 # for push, pull and up
node_transfer_size=8G # of the disk through which files go; sparse on the host

# node_transfer_lock: push and pull share one disk, so one of them at a time.
node_transfer_lock() {
  exec 6>"$node_dir/transfer.lock"
  flock 6
}

# node_image_key: names the image by everything that went into it that this repository decides.
node_image_key() {
  (cd "$node_home" && find build packages initrd-init image ../cni -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) |
    sha256sum | cut -c 1-16
}

# node_image: the directory of the image in the cache, complete once it holds `complete`.
node_image() { echo "$clearpod_cache/node/$(node_image_key)"; }

# node_pid: prints the pid of this node's QEMU and succeeds, if it runs. A pid file can outlive its process and the number
# be given to another, so the process has to name this node's own pid file.
node_pid() {
  local pid
  pid=$(cat "$node_dir/pid" 2>/dev/null) && [[ -n $pid ]] || return 1
  tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF -- "$node_dir/pid" || return 1
  echo "$pid"
}

# node_ssh OPTION... [COMMAND...]: ssh into the node over one kept connection. Compression and strict checks of strangers'
# keys have no place on loopback; the host key is the one made with the image.
node_ssh() { ssh -F "$node_dir/ssh_config" "$@"; }

# node_write_ssh_config PORT: what ssh, scp and rsync need to reach the node; the host is called `node` there.
node_write_ssh_config() {
  cat >"$node_dir/ssh_config" <<CONFIG
Host node
  HostName 127.0.0.1
  Port $1
  User root
  IdentityFile $node_dir/image/id
  IdentitiesOnly yes
  UserKnownHostsFile $node_dir/image/known_hosts
  HostKeyAlias node
  StrictHostKeyChecking yes
  Ciphers aes128-gcm@openssh.com
  Compression no
  BatchMode yes
  LogLevel ERROR
  ConnectTimeout 10
  ControlMaster auto
  ControlPath $(node_control_path)
  ControlPersist 600
CONFIG
}

# node_control_path: a unix socket's path may have 107 bytes and ssh adds a suffix while it connects, so a deep checkout
# needs a short path elsewhere, private to this user.
node_control_path() {
  local path=$node_dir/ssh
  if ((${#path} > 80)); then
    (umask 077 && mkdir -p "$clearpod_cache/ssh")
    path=$clearpod_cache/ssh/$(printf %s "$node_dir" | sha256sum | cut -c 1-16)
  fi
  echo "$path"
}

# node_running: fails with advice when there is none.
node_running() { node_pid >/dev/null || die "no node is running in $node_dir: start it with $node_home/up"; }
