# shellcheck shell=bash disable=SC2154 # much is set by whoever sources this
# Limits of containers, and how they change while a pod runs. A Machine's memory is its pod's limit and its overhead, which the
# RuntimeClass names.

# resizable NAME: one container with limits that a resize finds.
resizable() {
  pod "$1" <<'SPEC'
runtimeClassName: clearpod
containers:
- {name: main, image: BUSYBOX, command: [sleep, "3600"], resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: "1", memory: 128Mi}}}
SPEC
  ready "$1"
}

# resize NAME CPU MEMORY
resize() {
  kubectl patch pod "$1" --subresource resize --patch \
    "{\"spec\": {\"containers\": [{\"name\": \"main\", \"resources\": {\"limits\": {\"cpu\": \"$2\", \"memory\": \"$3\"}}}]}}"
}

# The container's cgroup, in the guest, by what it sees itself.
has_memory_limit() { [[ $(inside "$1" cat /sys/fs/cgroup/memory.max) == "$2" ]]; }
has_cpu_limit() { [[ $(inside "$1" cat /sys/fs/cgroup/cpu.max) == "$2" ]]; }

# is_resized NAME CPU MEMORY: told as done by kubelet.
is_resized() {
  field_is "$1" '.status.containerStatuses[0].resources.limits.cpu' "$2" &&
    field_is "$1" '.status.containerStatuses[0].resources.limits.memory' "$3" &&
    [[ $(field "$1" '.status.conditions[*].type') != *PodResize* ]]
}

together_limits() {
  resizable limited
  has_memory_limit limited $((128 << 20)) || fail "memory.max is $(inside limited cat /sys/fs/cgroup/memory.max)"
  has_cpu_limit limited "100000 100000" || fail "cpu.max is $(inside limited cat /sys/fs/cgroup/cpu.max)"
  same "QoS" "$(field limited .status.qosClass)" Burstable
  gone limited
}

together_resize_in_place() {
  resizable resized
  resize resized 500m 96Mi
  soon "smaller limits" is_resized resized 500m 96Mi
  has_memory_limit resized $((96 << 20)) || fail "memory.max is $(inside resized cat /sys/fs/cgroup/memory.max)"
  has_cpu_limit resized "50000 100000" || fail "cpu.max is $(inside resized cat /sys/fs/cgroup/cpu.max)"
  resize resized 1 128Mi
  soon "the former limits" is_resized resized 1 128Mi
  has_memory_limit resized $((128 << 20)) || fail "memory.max is $(inside resized cat /sys/fs/cgroup/memory.max)"
  same restarts "$(field resized '.status.containerStatuses[0].restartCount')" 0
  gone resized
}

# More memory than the Machine was started with.
together_resize_beyond_the_machine() {
  resizable grown
  resize grown 1 512Mi
  soon "a larger Machine: $(explain grown)" is_resized grown 1 512Mi
  has_memory_limit grown $((512 << 20)) || fail "memory.max is $(inside grown cat /sys/fs/cgroup/memory.max)"
  local memory
  memory=$(inside grown sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
  ((memory > 400 << 10)) || fail "the guest has $memory KiB"
  gone grown
}

together_ephemeral_storage_limit_evicts() {
  pod storage <<'SPEC'
containers:
- {name: main, image: BUSYBOX, resources: {limits: {ephemeral-storage: 5Mi}}, command: [sh, -c, 'head -c 30000000 /dev/zero >/large; sleep 3600']}
SPEC
  finished storage Failed
  same reason "$(field storage .status.reason)" Evicted
}
