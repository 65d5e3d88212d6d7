# shellcheck shell=bash
# What the scripts here say to a person: progress on standard error, one line per step, never on standard output, which
# belongs to results. Sourced, not run. It decides nothing and exits only through `die`.

# When the first of the scripts began: those that it starts go on counting from there.
export CLEARPOD_STARTED=${CLEARPOD_STARTED:-$EPOCHSECONDS}

# say MARK TEXT: with the seconds since then.
say() { printf '[%4ds] %s %s\n' "$((EPOCHSECONDS - CLEARPOD_STARTED))" "$1" "${*:2}" >&2; }

# step TEXT: a new step begins.
step() { say '==>' "$*"; }

# info TEXT: something worth knowing within a step.
info() { say '   ' "$*"; }

# warn TEXT: it goes on, but not as asked.
warn() { say '!!!' "$*"; }

# die TEXT: it cannot go on; the text names the operation and what to do about it.
die() {
  say 'ERROR:' "$*"
  exit 1
}

# logged FILE COMMAND...: run it with its output in FILE; only when it fails is the end of that output shown.
logged() {
  local log=$1 status=0
  shift
  "$@" >"$log" 2>&1 || status=$?
  ((status == 0)) && return 0
  warn "failed with status $status: $*; the end of $log:"
  tail -n 25 "$log" >&2
  return "$status"
}
