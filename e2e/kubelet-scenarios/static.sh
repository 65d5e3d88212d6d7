# shellcheck shell=bash disable=SC2154 # much is set by whoever sources this
# kubelet without an apiserver: pods are files in a directory, and what is known of them is asked of kubelet itself and of the
# runtime. Each of these is tried with both versions of kubelet.

# static_pod NAME: written; its specification comes on standard input.
static_pod() { manifest "$1" >"$run/manifests/$1.yaml"; }

# container_of POD: the id of its container that runs, if it does.
container_of() { crictl ps -q --state running --label "io.kubernetes.pod.name=$1-$node"; }
runs() { [[ -n $(container_of "$1") ]]; }

# end_static POD: its file is removed, and all of it goes.
end_static() {
  rm "$run/manifests/$1.yaml"
  soon "the end of the static pod $1" sandbox_is_gone "$1"
}

sandbox_is_gone() { [[ -z $(crictl pods -q --state ready --label "io.kubernetes.pod.name=$1-$node") ]]; }

static_pod_runs() {
  static_pod simple <<'SPEC'
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'echo static; exec sleep 3600']}
SPEC
  soon "the container" runs simple
  has "what kubelet tells" "$(kubelet_get /pods)" "\"name\":\"simple-$node\""
  soon "its log, from kubelet" static_log_has simple static
  has "exec, by kubelet" "$(kubelet_get "/run/default/simple-$node/main?cmd=hostname" -X POST)" simple
  has "exec, by crictl" "$(crictl exec "$(container_of simple)" cat /proc/1/cmdline | tr '\0' ' ')" "sleep 3600"
  end_static simple
}

static_log_has() { [[ $(kubelet_get "/containerLogs/default/$1-$node/main") == *"$2"* ]]; }

static_pod_is_probed_and_restarted() {
  static_pod probed <<'SPEC'
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, 'echo fine >/www/health; exec httpd -f -p 8080 -h /www']
  livenessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1, failureThreshold: 3}
SPEC
  soon "the container" runs probed
  local before
  before=$(container_of probed)
  crictl exec "$before" rm /www/health
  soon "another container" another_runs probed "$before"
  end_static probed
}

another_runs() {
  local now
  now=$(container_of "$1")
  [[ -n $now && $now != "$2" ]]
}

static_pod_changes_with_its_file() {
  local text
  for text in first second; do
    static_pod edited <<SPEC
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'echo $text; exec sleep 3600']}
SPEC
    soon "the $text one's log" static_log_has edited "$text"
  done
  end_static edited
}

static_pod_with_volumes_and_init() {
  echo from the host >"$scratch/file"
  static_pod volumes <<'SPEC'
initContainers:
- {name: first, image: BUSYBOX, command: [cp, /host/file, /data/file], volumeMounts: [{name: host, mountPath: /host}, {name: data, mountPath: /data}]}
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'cat /data/file; exec sleep 3600'], volumeMounts: [{name: data, mountPath: /data}]}
volumes: [{name: host, hostPath: {path: SCRATCH}}, {name: data, emptyDir: {medium: Memory}}]
SPEC
  soon "what it read" static_log_has volumes "from the host"
  end_static volumes
}

static_pod_outlives_kubelet() {
  static_pod lasting <<'SPEC'
containers:
- {name: main, image: BUSYBOX, command: [sleep, "3600"]}
SPEC
  soon "the container" runs lasting
  local before
  before=$(container_of lasting)
  end kubelet
  start_kubelet_again
  sleep 10
  same "the container" "$(container_of lasting)" "$before"
  end_static lasting
}

static_kubelet_statistics() {
  static_pod counted <<'SPEC'
containers:
- {name: main, image: BUSYBOX, command: [sleep, "3600"]}
SPEC
  soon "the pod in the summary" summary_names "counted-$node"
  same "calls of the runtime that are measured" "$(kubelet_get /metrics | grep -c '^kubelet_runtime_operations_total{operation_type="create_container"')" 1
  end_static counted
}

summary_names() { [[ $(kubelet_get /stats/summary) == *"\"name\": \"$1\""* ]]; }
