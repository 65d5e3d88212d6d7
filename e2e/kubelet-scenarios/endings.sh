# shellcheck shell=bash disable=SC2154 # much is set by whoever sources this
# How containers end and what is told about it.

# trapper NAME GRACE WHAT-IT-DOES-ON-TERM
trapper() {
  pod "$1" <<SPEC
terminationGracePeriodSeconds: $2
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'trap "$3" TERM; touch /host/ready; while :; do sleep 0.2; done'], volumeMounts: [{name: host, mountPath: /host}]}
volumes: [{name: host, hostPath: {path: SCRATCH}}]
SPEC
  ready "$1"
  soon "the trap" test -e "$scratch/ready"
}

together_graceful_termination() {
  trapper graceful 60 'echo asked >/host/asked; sleep 2; echo done >/host/done; exit 0'
  gone graceful
  same "what it did when asked" "$(cat "$scratch/asked" "$scratch/done" | tr '\n' ' ')" "asked done "
}

# One that does not listen is killed, but not before its time is over.
together_grace_period_ends() {
  trapper stubborn 6 'date +%s >>/host/asked'
  local begun=$EPOCHSECONDS took
  gone stubborn
  took=$((EPOCHSECONDS - begun))
  [[ -s $scratch/asked ]] || fail "it was never asked"
  ((took >= 6)) || fail "killed after $took s of 6"
}

together_stop_signal_of_the_image_or_pod() {
  pod stop-signal <<'SPEC'
os: {name: linux}
terminationGracePeriodSeconds: 60
containers:
- {name: main, image: BUSYBOX, lifecycle: {stopSignal: SIGUSR1}, command: [sh, -c, 'trap "echo usr1 >/host/signal; exit 0" USR1; touch /host/ready; while :; do sleep 0.2; done'], volumeMounts: [{name: host, mountPath: /host}]}
volumes: [{name: host, hostPath: {path: SCRATCH}}]
SPEC
  [[ -n $(field stop-signal '.spec.containers[0].lifecycle.stopSignal') ]] || skip "this apiserver knows no stopSignal"
  ready stop-signal
  soon "the trap" test -e "$scratch/ready"
  same "the signal that is told" "$(field stop-signal '.status.containerStatuses[0].stopSignal')" SIGUSR1
  gone stop-signal
  same "the signal that came" "$(<"$scratch/signal")" usr1
}

# once NAME POLICY COMMAND: runs to its end.
once() {
  pod "$1" <<SPEC
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, terminationMessagePolicy: $2, command: [sh, -c, '$3']}
SPEC
}

together_termination_message() {
  once message File 'echo "said in the end" >/dev/termination-log; echo not this; exit 1'
  finished message Failed
  same message "$(terminated message message)" "said in the end"
}

together_termination_message_from_the_log() {
  once message-log FallbackToLogsOnError 'echo the last words; exit 1'
  finished message-log Failed
  same message "$(terminated message-log message)" "the last words"
}

together_exit_codes() {
  once exit-0 File 'exit 0'
  once exit-42 File 'exit 42'
  finished exit-0 Succeeded
  same reason "$(terminated exit-0 reason)" Completed
  finished exit-42 Failed
  same "exit code and reason" "$(terminated exit-42 exitCode) $(terminated exit-42 reason)" "42 Error"
}

# Number 1 of a namespace does not die of signals from inside, so the container's process must be another one. Kubernetes makes
# one dollar sign of two.
together_exit_by_a_signal() {
  pod exit-signal <<'SPEC'
restartPolicy: Never
shareProcessNamespace: true
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'kill -SEGV $$$$; sleep 9']}
SPEC
  finished exit-signal Failed
  same "exit code" "$(terminated exit-signal exitCode)" 139
}

together_program_is_missing() {
  pod missing <<'SPEC'
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, command: [/no/such/program]}
SPEC
  finished missing Failed
  has "the message" "$(terminated missing message)" "/no/such/program"
  (($(terminated missing exitCode) != 0)) || fail "exit code 0"
}

together_image_is_missing() {
  pod no-image <<'SPEC'
containers:
- {name: main, image: IMAGES/there-is-none:1}
SPEC
  soon "ErrImagePull" waits_for_an_image no-image
  gone no-image
}

waits_for_an_image() { [[ $(field "$1" '.status.containerStatuses[0].state.waiting.reason') == @(ErrImagePull|ImagePullBackOff) ]]; }

# The container's limit, not its pod's: the pod goes on, and its container is told to have been killed for memory.
together_out_of_memory() {
  pod oom <<'SPEC'
restartPolicy: Never
runtimeClassName: clearpod
containers:
- {name: eater, image: BUSYBOX, resources: {limits: {memory: 32Mi}}, command: [sh, -c, 'tail /dev/zero']}
- {name: other, image: BUSYBOX, resources: {limits: {memory: 32Mi}}, command: [sh, -c, 'until [ -e /tmp/go ]; do sleep 0.5; done']}
SPEC
  local eater='.status.containerStatuses[?(@.name=="eater")].state.terminated'
  soon "OOMKilled" field_is oom "$eater.reason" OOMKilled
  same "exit code" "$(field oom "$eater.exitCode")" 137
  kubectl exec oom -c other -- touch /tmp/go
  soon "the other's end" field_is oom '.status.containerStatuses[?(@.name=="other")].state.terminated.exitCode' 0
}
