# shellcheck shell=bash
# What the scripts here say to a person: progress on standard error, one line per step, never on standard output, which
# belongs to results. Sourced, not run. It decides nothing and exits only through `die`.

# step TEXT: a new step begins; the seconds since the script began stand before it.
step() { printf '[%4ds] ==> %s\n' "$SECONDS" "$*" >&2; }

# info TEXT: something worth knowing within a step.
info() { printf '[%4ds]     %s\n' "$SECONDS" "$*" >&2; }

# warn TEXT: it goes on, but not as asked.
warn() { printf '[%4ds] !!! %s\n' "$SECONDS" "$*" >&2; }

# die TEXT: it cannot go on; the text names the operation and what to do about it.
die() {
  printf '[%4ds] ERROR: %s\n' "$SECONDS" "$*" >&2
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
