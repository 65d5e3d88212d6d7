# shellcheck shell=bash disable=SC2154 # much is set by whoever sources this
# What scenarios are written with. Sourced by e2e/kubelet-scenarios/run, one process per scenario, which stops at the first
# command that fails. $scratch is a directory of the node for this scenario alone.

images=registry.k8s.io/e2e-test-images
busybox=$images/busybox:1.29-2
patience=300 # seconds for whatever a pod does: an emulated node whose processors are shared with others is slow

# fail TEXT: this scenario, with the cause. Within a command substitution it is the comparison that fails next, so the first counts.
fail() {
  [[ -s $scratch/cause ]] || echo "$*" >"$scratch/cause"
  exit 1
}

# skip REASON: it cannot be tried here.
skip() {
  echo "$*" >"$scratch/cause"
  exit 77
}

# same WHAT ACTUAL WANTED
same() { [[ $2 == "$3" ]] || fail "$1 is \"$2\", not \"$3\""; }

# has WHAT TEXT PART
has() { [[ $2 == *"$3"* ]] || fail "$1 has no \"$3\": ${2:0:300}"; }

# soon TEXT COMMAND...: it succeeds before patience ends.
soon() {
  local text=$1
  shift
  wait_for "$patience" "$text" "$@" || fail "not within $patience s: $cause"
}

# pod NAME: creates it; its specification comes on standard input, in which BUSYBOX, IMAGES and SCRATCH are replaced.
pod() { manifest "$1" | kubectl create -f - >/dev/null; }

# manifest NAME: what pod creates.
manifest() {
  local spec
  spec=$(sed "s,BUSYBOX,$busybox,g; s,IMAGES,$images,g; s,SCRATCH,$scratch,g; s,^,  ,")
  printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {scenario: %s}}\nspec:\n  nodeName: %s\n' "$1" "$scenario" "$node"
  [[ $spec == *terminationGracePeriodSeconds* ]] || echo '  terminationGracePeriodSeconds: 1'
  printf '%s\n' "$spec"
}

# fresh KIND NAME ARGUMENT...: kubectl create, for what an earlier try may have left.
fresh() {
  local name=${*:2}
  name=${name#generic }
  kubectl delete "$1" "${name%% *}" --ignore-not-found >/dev/null
  kubectl create "$@" >/dev/null
}

# shell_pod NAME: one that waits to be told; further lines of its container come on standard input.
shell_pod() {
  {
    printf 'containers:\n- name: main\n  image: BUSYBOX\n  command: [sleep, "3600"]\n'
    sed 's/^/  /'
  } | pod "$1"
  ready "$1"
}

# ready POD...: all of its containers run and say that they are ready.
ready() {
  kubectl wait --for=condition=Ready --timeout="${patience}s" "${@/#/pod/}" >/dev/null || fail "not ready: $(explain "$@")"
}

# finished POD PHASE: Succeeded or Failed.
finished() {
  kubectl wait --for=jsonpath='{.status.phase}'="$2" --timeout="${patience}s" "pod/$1" >/dev/null || fail "not $2: $(explain "$1")"
}

# explain POD...: why it is not as it should be, on one line.
explain() {
  kubectl get pod "$@" -o jsonpath='{..status.phase} {..status.reason} {..status.message} {..state}' | head -c 600
  kubectl get events --field-selector "involvedObject.name=$1" -o jsonpath='{range .items[?(@.type=="Warning")]}{.message}; {end}' | tail -c 600
}

# field POD JSONPATH
field() { kubectl get pod "$1" -o jsonpath="{$2}"; }
field_is() { [[ $(field "$1" "$2") == "$3" ]]; }

# inside POD COMMAND...: runs it in the pod's container, or in that which -c names after POD.
inside() { kubectl exec "$1" -- "${@:2}"; }

# shell POD TEXT: the same with a shell.
shell() { kubectl exec "$1" -- sh -c "$2"; }

# terminated POD FIELD: of the end of its only container.
terminated() { field "$1" ".status.containerStatuses[0].state.terminated.$2"; }

# log_has POD TEXT
log_has() { [[ $(kubectl logs "$1") == *"$2"* ]]; }

gone() { kubectl delete pod "$@" --timeout="${patience}s" >/dev/null || fail "cannot be deleted: $(explain "$1")"; }

# The pod that scenarios about streams share.
prepare_tools() { shell_pod tools </dev/null; }
