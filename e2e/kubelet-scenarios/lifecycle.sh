# shellcheck shell=bash disable=SC2154 # much is set by whoever sources this
# Init containers, sidecars, hooks, probes, restarts and several pods that belong together.

together_init_containers() {
  pod init <<'SPEC'
restartPolicy: Never
initContainers:
- {name: one, image: BUSYBOX, command: [sh, -c, 'echo one >>/data/order'], volumeMounts: [{name: data, mountPath: /data}]}
- {name: two, image: BUSYBOX, command: [sh, -c, 'echo two >>/data/order'], volumeMounts: [{name: data, mountPath: /data}]}
containers:
- {name: main, image: BUSYBOX, command: [cat, /data/order], volumeMounts: [{name: data, mountPath: /data}]}
volumes: [{name: data, emptyDir: {}}]
SPEC
  finished init Succeeded
  same order "$(kubectl logs init | tr '\n' ' ')" "one two "
}

together_init_container_fails() {
  pod init-fails <<'SPEC'
restartPolicy: Never
initContainers:
- {name: one, image: BUSYBOX, command: [sh, -c, 'exit 5']}
containers:
- {name: main, image: BUSYBOX, command: [echo, never]}
SPEC
  finished init-fails Failed
  same "the init container's exit code" "$(field init-fails '.status.initContainerStatuses[0].state.terminated.exitCode')" 5
  same "the container's state" "$(field init-fails '.status.containerStatuses[0].state.waiting.reason')" PodInitializing
}

# A sidecar is there before the container and ended after it; the pod does not wait for it.
together_sidecar() {
  pod sidecar <<'SPEC'
restartPolicy: Never
terminationGracePeriodSeconds: 10
initContainers:
- name: side
  image: BUSYBOX
  restartPolicy: Always
  command: [sh, -c, 'trap "echo ended >/host/side; exit 0" TERM; httpd -p 127.0.0.1:8080 -h /www; touch /tmp/ready; while :; do sleep 1; done']
  startupProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}
  volumeMounts: [{name: host, mountPath: /host}]
containers:
- {name: main, image: BUSYBOX, command: [wget, -q, -O, '-', 'http://127.0.0.1:8080/index.html']}
volumes: [{name: host, hostPath: {path: SCRATCH}}]
SPEC
  finished sidecar Succeeded
  has "what the sidecar served" "$(kubectl logs sidecar -c main)" "page of the stand-in"
  same "what the sidecar left" "$(<"$scratch/side")" ended
}

together_hooks() {
  pod hooks <<'SPEC'
terminationGracePeriodSeconds: 20
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, 'until [ -e /host/started ]; do sleep 0.2; done; exec httpd -f -p 8080 -h /www']
  lifecycle:
    postStart: {exec: {command: [sh, -c, 'echo start >/host/started']}}
    preStop: {exec: {command: [sh, -c, 'sleep 2; echo stop >/host/stopped']}}
  volumeMounts: [{name: host, mountPath: /host}]
volumes: [{name: host, hostPath: {path: SCRATCH}}]
SPEC
  ready hooks
  same postStart "$(<"$scratch/started")" start
  gone hooks
  same preStop "$(<"$scratch/stopped")" stop
}

together_post_start_fails() {
  pod post-start-fails <<'SPEC'
containers:
- {name: main, image: BUSYBOX, command: [sleep, "3600"], lifecycle: {postStart: {exec: {command: [sh, -c, 'echo no; exit 3']}}}}
SPEC
  soon "a restart" has_restarted post-start-fails 1
  gone post-start-fails
}

has_restarted() { (($(field "$1" '.status.containerStatuses[0].restartCount') >= $2)); }

# Not ready, ready, not ready again, as the file is there or not.
together_readiness_probe() {
  shell_pod readiness <<'SPEC'
readinessProbe: {exec: {command: [test, '!', -e, /tmp/busy]}, periodSeconds: 1, failureThreshold: 1}
SPEC
  inside readiness touch /tmp/busy
  soon "not ready" field_is readiness '.status.containerStatuses[0].ready' false
  inside readiness rm /tmp/busy
  soon "ready again" field_is readiness '.status.containerStatuses[0].ready' true
  same restarts "$(field readiness '.status.containerStatuses[0].restartCount')" 0
  gone readiness
}

together_liveness_probe() {
  pod liveness <<'SPEC'
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, 'echo fine >/www/health; exec httpd -f -p 8080 -h /www']
  livenessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1, failureThreshold: 3, initialDelaySeconds: 3}
SPEC
  ready liveness
  sleep 6
  same "restarts of a live one" "$(field liveness '.status.containerStatuses[0].restartCount')" 0
  inside liveness rm /www/health
  soon "a restart" has_restarted liveness 1
  ready liveness
  gone liveness
}

together_startup_probe() {
  pod startup <<'SPEC'
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, 'sleep 4; exec httpd -f -p 8080 -h /www']
  startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 60}
  livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 3}
SPEC
  ready startup
  same restarts "$(field startup '.status.containerStatuses[0].restartCount')" 0
  gone startup
}

together_restart_with_backoff() {
  pod backoff <<'SPEC'
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'exit 3']}
SPEC
  soon "CrashLoopBackOff" field_is backoff '.status.containerStatuses[0].state.waiting.reason' CrashLoopBackOff
  soon "a second restart" has_restarted backoff 2
  same "the last exit code" "$(field backoff '.status.containerStatuses[0].lastState.terminated.exitCode')" 3
  gone backoff
}

together_restart_only_on_failure() {
  pod on-failure <<'SPEC'
restartPolicy: OnFailure
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'test -e /data/was && exit 0; touch /data/was; exit 1'], volumeMounts: [{name: data, mountPath: /data}]}
volumes: [{name: data, emptyDir: {}}]
SPEC
  finished on-failure Succeeded
  same restarts "$(field on-failure '.status.containerStatuses[0].restartCount')" 1
}

# Four pods of one kind; each serves, and each is reached from another by its own address.
together_pods_of_a_deployment() {
  local number names=()
  for number in 1 2 3 4; do
    names+=("web-$number")
    pod "web-$number" <<'SPEC'
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, 'hostname >/www/index.html; exec httpd -f -p 80 -h /www']
  readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
SPEC
  done
  ready "${names[@]}"
  for number in 1 2 3 4; do
    same "the answer of web-$number" "$(inside tools wget -q -O - "http://$(field "web-$number" .status.podIP)/")" "web-$number"
  done
  same "different addresses" "$(kubectl get pods -l scenario="$scenario" -o jsonpath='{range .items[*]}{.status.podIP}{"\n"}{end}' | sort -u | wc -l)" 4
  gone "${names[@]}"
}

together_active_deadline() {
  pod deadline <<'SPEC'
restartPolicy: Never
activeDeadlineSeconds: 8
containers:
- {name: main, image: BUSYBOX, command: [sleep, "3600"]}
SPEC
  finished deadline Failed
  same reason "$(field deadline .status.reason)" DeadlineExceeded
}
