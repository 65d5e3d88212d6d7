# shellcheck shell=bash disable=SC2154 # much is set by whoever sources this
# What concerns the whole node, so that each of these runs alone: restarts of kubelet and of clearpod, statistics, images, and that
# nothing of deleted pods is left.

alone_node_is_ready() {
  kubectl wait --for=condition=Ready --timeout="${patience}s" "node/$node" >/dev/null
  has "the runtime" "$(kubectl get node "$node" -o jsonpath='{.status.nodeInfo.containerRuntimeVersion}')" clearpod://
  same "disk pressure" "$(kubectl get node "$node" -o jsonpath='{.status.conditions[?(@.type=="DiskPressure")].status}')" False
  same "QoS cgroups" "$(find /sys/fs/cgroup/kubepods -maxdepth 1 -name 'b*' -printf '%f ')" "burstable besteffort "
}

# identity POD: of its container and sandbox: the same after a restart of whatever is not the pod.
identity() { field "$1" '.status.containerStatuses[0].containerID} {.status.podIP} {.status.containerStatuses[0].restartCount'; }

# still POD IDENTITY: it is the same, and works.
still() {
  sleep 12
  same "the pod" "$(identity "$1")" "$2"
  has "what it says" "$(inside "$1" echo alive)" alive
  same ready "$(field "$1" '.status.containerStatuses[0].ready')" true
}

alone_kubelet_restart() {
  local before
  shell_pod outlives-kubelet </dev/null
  before=$(identity outlives-kubelet)
  end kubelet
  start_kubelet_again
  still outlives-kubelet "$before"
  gone outlives-kubelet
}

alone_clearpod_restart() {
  local before
  pod outlives-clearpod <<'SPEC'
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'i=0; while :; do echo line $i; i=$((i+1)); sleep 0.1; done']}
SPEC
  ready outlives-clearpod
  before=$(identity outlives-clearpod)
  end clearpod
  start_clearpod
  still outlives-clearpod "$before"
  kill -KILL "$(pid_of clearpod)"
  start_clearpod
  still outlives-clearpod "$before"
  kubectl logs outlives-clearpod | awk '$1 == "line" && $2 != NR - 1 { print "line " NR " says " $2; exit 1 }' >"$scratch/gap" ||
    fail "the log has a gap or a double: $(<"$scratch/gap")"
  gone outlives-clearpod
}

alone_kubelet_and_clearpod_restart_while_a_pod_is_deleted() {
  trapper deleted-meanwhile 30 'sleep 6; exit 0'
  kubectl delete pod deleted-meanwhile --wait=false
  sleep 1
  end kubelet
  end clearpod
  start_clearpod
  start_kubelet_again
  kubectl wait --for=delete --timeout="${patience}s" pod/deleted-meanwhile || fail "still there: $(explain deleted-meanwhile)"
}

# The registry stands still while kubelet ends and starts again.
alone_kubelet_restart_in_mid_pull() {
  local image=registry.k8s.io/k8s-staging-cri-tools/test-image-2:latest
  crictl rmi "$image" >/dev/null 2>&1 || true
  kill -STOP "$(pid_of registry)"
  pod mid-pull <<SPEC
containers:
- {name: main, image: "$image", command: [sleep, "3600"]}
SPEC
  soon "the pull" pulls mid-pull
  end kubelet
  kill -CONT "$(pid_of registry)"
  start_kubelet_again
  ready mid-pull
  gone mid-pull
}

pulls() { [[ $(kubectl get events --field-selector "involvedObject.name=$1,reason=Pulling" -o name) ]]; }

# in_summary OBJECT SECTION NAME: a number of kubelet's own statistics, of a pod's (or, with "node", of the node's) section of that
# name. The text is indented, an entry a line, and a pod's ends where the next one's reference begins.
in_summary() {
  kubectl get --raw "/api/v1/nodes/$node/proxy/stats/summary" >"$scratch/summary.json"
  sed -n "/\"\(name\|nodeName\)\": \"$1\"/,/\"podRef\"/p" "$scratch/summary.json" | sed -n "/\"$2\": {/,/}/p" |
    sed -n "s/.*\"$3\": \([0-9]*\).*/\1/p" | head -n 1
}

summary_has() {
  local number
  number=$(in_summary "$1" "$2" "$3")
  [[ -n $number ]] && ((number >= $4))
}

alone_stats_summary() {
  pod busy <<'SPEC'
runtimeClassName: clearpod
containers:
- {name: main, image: BUSYBOX, resources: {limits: {memory: 64Mi}}, command: [sh, -c, 'head -c 20000000 /dev/zero >/written; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 3600']}
SPEC
  ready busy
  soon "processor time" summary_has busy cpu usageCoreNanoSeconds 100000000
  soon "memory" summary_has busy memory workingSetBytes 100000
  soon "what it has written" summary_has busy rootfs usedBytes 20000000
  soon "received bytes" summary_has busy network rxBytes 1
  gone busy
}

alone_metrics() {
  shell_pod measured </dev/null
  soon "the container's metrics" metrics_have 'container_memory_working_set_bytes{[^}]*pod="measured"'
  metrics_have 'container_cpu_usage_seconds_total{[^}]*pod="measured"' || fail "no processor time of the container"
  gone measured
}

metrics_have() { kubectl get --raw "/api/v1/nodes/$node/proxy/metrics/cadvisor" | grep -q "^$1"; }

alone_image_file_system() {
  local used capacity
  used=$(in_summary "$node" imageFs usedBytes)
  capacity=$(in_summary "$node" imageFs capacityBytes)
  ((used > 500000 && used < capacity)) || fail "images use $used of $capacity bytes"
  has "the node's images" "$(kubectl get node "$node" -o jsonpath='{.status.images[*].names}')" "$busybox"
}

# kubelet removes images when the disk is full beyond a threshold, which it is told is nearly nothing.
alone_image_garbage_collection() {
  local image=registry.k8s.io/k8s-staging-cri-tools/test-image-3:latest
  crictl pull "$image"
  cp "$run/kubelet.yaml" "$scratch/kubelet.yaml"
  sed -i -e 's/^imageGCHigh.*/imageGCHighThresholdPercent: 2/' -e 's/^imageGCLow.*/imageGCLowThresholdPercent: 1/' \
    -e '$a imageMinimumGCAge: 1s' "$run/kubelet.yaml"
  end kubelet
  start_kubelet_again
  wait_for 400 "kubelet removes an unused image" image_is_gone "$image" || fail "$cause: not within 400 s"
  crictl inspecti "$busybox" >/dev/null || fail "an image in use is gone"
  cp "$scratch/kubelet.yaml" "$run/kubelet.yaml"
  end kubelet
  start_kubelet_again
}

image_is_gone() { ! crictl inspecti "$1" >/dev/null 2>&1; }

alone_exec_round_trip() {
  local number begun times=()
  for number in {1..10}; do
    begun=${EPOCHREALTIME/./}
    inside tools true
    times+=($(((${EPOCHREALTIME/./} - begun) / 1000)))
  done
  begun=$(printf '%s\n' "${times[@]}" | sort -n | sed -n 6p)
  printf '{"figure": "kubectl exec round trip", "unit": "ms", "median": %d, "of": [%s], "backend": "%s"}\n' "$begun" \
    "$(IFS=,; echo "${times[*]}")" "$backend" >"$results/exec-round-trip.json"
}

alone_zy_no_server_panicked() {
  local server
  for server in kubelet apiserver clearpod; do
    grep -qE "^panic:|panicked at" "$results/$server.log" && fail "$server: $(grep -m 1 -E "^panic:|panicked at" "$results/$server.log")"
  done
  return 0
}

# The last one: all pods go, and with them all that they had.
alone_zz_nothing_is_left() {
  kubectl delete pod --all --timeout=300s >/dev/null
  soon "no sandbox" no_sandbox
  same "processes of Machines" "$(pgrep -f "^$bundle/bin/(clearpod-vmm|virtiofsd|clearpod-shim)" | wc -l)" 0
  same "namespaces" "$(find /run/netns /var/run/netns "$run/netns" -name '*clearpod*' 2>/dev/null | head -n 1)" ""
  same "interfaces at the bridge" "$(ip -o link show master "$bridge")" ""
  same "directories of Machines" "$(find "$run/machines" -mindepth 1 -maxdepth 1 | wc -l)" 0
  same "addresses" "$(find "$run/ipam" -type f -name '*.*.*.*' | wc -l)" 0
  soon "no pod's cgroup" no_pod_cgroup
  same "mounts of pods" "$(grep -c "$state/kubelet/pods" /proc/mounts || true)" 0
}

# kubelet keeps the last sandbox of a pod until its garbage collection, which comes once a minute.
no_sandbox() { [[ -z $(crictl pods -q) ]]; }
no_pod_cgroup() { [[ -z $(find /sys/fs/cgroup/kubepods /sys/fs/cgroup/clearpod -mindepth 1 -type d \( -name 'pod*' -o -name 'clearpod-*' \) 2>/dev/null) ]]; }
