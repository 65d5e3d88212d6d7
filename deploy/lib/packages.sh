# shellcheck shell=bash
# Debian packages that a script needs on this host: installed when missing, and said so. Sourced after log.sh. It never
# removes or replaces anything and never edits the host's apt configuration.

package_is_installed() {
  [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null) == ii* ]]
}

# need_packages NAME...: install from the host's own sources whichever of these are missing.
need_packages() {
  local missing=() name
  for name; do package_is_installed "$name" || missing+=("$name"); done
  ((${#missing[@]})) || return 0
  install_packages "apt-get" "${missing[@]}"
}

# need_backport NAME VERSION: NAME of at least VERSION, from backports when the host has none or an older one.
need_backport() {
  local name=$1 least=$2 present
  if package_is_installed "$name"; then
    present=$(dpkg-query -W -f '${Version}' "$name")
    if dpkg --compare-versions "$present" ge "$least"; then return 0; fi
  fi
  install_packages "$CLEARPOD_LIB/backports-apt" -t bookworm-backports "$name"
}

# install_packages APT-GET ARGUMENT...: as root only; the output is kept and shown when it fails.
install_packages() {
  local apt=$1 log
  shift
  ((EUID == 0)) || die "packages are missing and only root can install them: $*"
  step "installing packages: $*"
  log=$(mktemp -t clearpod-apt.XXXXXX)
  if ! DEBIAN_FRONTEND=noninteractive logged "$log" "$apt" install -y --no-install-recommends -o Acquire::Retries=3 "$@"; then
    # Lists older than the mirror name files that are gone: once more with fresh ones.
    logged "$log" "$apt" update || die "apt-get update failed: is a Debian mirror reachable?"
    DEBIAN_FRONTEND=noninteractive logged "$log" "$apt" install -y --no-install-recommends -o Acquire::Retries=3 "$@" ||
      die "could not install: $*"
  fi
  rm -f "$log"
}
