# shellcheck shell=bash disable=SC2154 # much is set by whoever sources this
# Exec, attach, copy, port-forward and logs, as kubectl does them through apiserver and kubelet. The pod `tools` is there for all
# of these and changed by none.

together_exec() {
  same output "$(inside tools echo hello)" hello
  same "standard error" "$(shell tools 'echo out; echo err >&2' 2>&1 >/dev/null | head -n 1)" err
  same "a file's lines" "$(shell tools 'cat /proc/1/cmdline' | tr '\0' ' ')" "sleep 3600 "
}

together_exec_stdin() {
  head -c 2000000 /dev/urandom >"$scratch/sent"
  same checksum "$(kubectl exec -i tools -- sha256sum <"$scratch/sent" | cut -d ' ' -f 1)" "$(sha256sum <"$scratch/sent" | cut -d ' ' -f 1)"
}

together_exec_large_output() {
  same bytes "$(shell tools 'head -c 8000000 /dev/zero' | wc -c)" 8000000
}

together_exec_exit_code() {
  local status=0
  shell tools 'exit 7' || status=$?
  same "exit code" "$status" 7
  status=0
  inside tools /no/such/program || status=$?
  ((status != 0)) || fail "a program that is not there ended with 0"
}

together_exec_over_spdy() {
  export KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false
  same output "$(echo through | kubectl exec -i tools -- cat)" through
  same "exit code" "$(shell tools 'exit 9' || echo $?)" 9
}

# A terminal of 33 lines, which becomes one of 40 while the program runs.
together_exec_terminal_resize() {
  cat >"$scratch/typed" <<'SH'
stty rows 33 cols 77
(until kubectl exec tools -- test -e /tmp/sized; do sleep 1; done; stty rows 40 cols 100 </dev/tty) &
kubectl exec -it tools -- sh -c 'stty size; touch /tmp/sized; until [ "$(stty size)" = "40 100" ]; do sleep 1; done; echo grown'
SH
  timeout "$patience" script -qec "sh $scratch/typed" /dev/null </dev/null >"$scratch/seen"
  has "what the terminal showed" "$(<"$scratch/seen")" "33 77"
  has "what the terminal showed" "$(<"$scratch/seen")" grown
}

together_attach() {
  pod attach <<'SPEC'
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, stdin: true, stdinOnce: true, command: [sh, -c, 'while read -r line; do echo "got $line"; done; echo end']}
SPEC
  ready attach
  has "what attach showed" "$({ echo one; sleep 1; echo two; } | kubectl attach -i attach 2>"$scratch/attach")" "got two"
  finished attach Succeeded
  log_has attach end || fail "the log has no end: $(kubectl logs attach)"
}

together_copy_into_a_pod() {
  mkdir "$scratch/tree"
  head -c 3000000 /dev/urandom >"$scratch/tree/large"
  echo small >"$scratch/tree/small"
  kubectl cp "$scratch/tree" tools:/tmp/tree
  same "the small file" "$(inside tools cat /tmp/tree/small)" small
  same checksum "$(inside tools sha256sum /tmp/tree/large | cut -d ' ' -f 1)" "$(sha256sum "$scratch/tree/large" | cut -d ' ' -f 1)"
}

together_copy_out_of_a_pod() {
  local sum
  sum=$(shell tools 'mkdir /tmp/out && head -c 3000000 /dev/urandom >/tmp/out/large && sha256sum /tmp/out/large' | cut -d ' ' -f 1)
  kubectl cp tools:/tmp/out/large "$scratch/large" >/dev/null
  same checksum "$(sha256sum "$scratch/large" | cut -d ' ' -f 1)" "$sum"
}

# forwards POD PORT: on a port of kubectl's choice, which is left in $forwarded; $forwarder has to be ended.
forwards() {
  kubectl port-forward "$1" ":$2" >"$scratch/forward" 2>&1 &
  forwarder=$!
  soon "kubectl port-forward" grep -q 'Forwarding from 127' "$scratch/forward"
  forwarded=$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\) .*/\1/p' "$scratch/forward")
}

# The server listens on the pod's 127.0.0.1 only; over both transports.
together_port_forward() {
  pod forward <<'SPEC'
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'head -c 1000000 /dev/urandom >/www/large; exec httpd -f -p 127.0.0.1:8080 -h /www'], readinessProbe: {exec: {command: [wget, -q, -O, /dev/null, 'http://127.0.0.1:8080/']}, periodSeconds: 2}}
SPEC
  ready forward
  local websockets sum
  for websockets in true false; do
    KUBECTL_PORT_FORWARD_WEBSOCKETS=$websockets forwards forward 8080
    soon "the page" curl -sf --max-time 20 -o "$scratch/page" "http://127.0.0.1:$forwarded/index.html"
    has page "$(<"$scratch/page")" "page of the stand-in"
    curl -sf --max-time 60 -o "$scratch/large" "http://127.0.0.1:$forwarded/large"
    sum=$(inside forward sha256sum /www/large | cut -d ' ' -f 1)
    same checksum "$(sha256sum "$scratch/large" | cut -d ' ' -f 1)" "$sum"
    end_process "$forwarder"
  done
  gone forward
}

together_logs() {
  pod logs <<'SPEC'
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; echo error >&2; printf unfinished']}
SPEC
  finished logs Succeeded
  same lines "$(kubectl logs logs | grep -c '^line ')" 500
  same "of standard error" "$(kubectl logs logs | grep -c '^error$')" 1
  # Where it stands among the lines of the other pipe, no runtime can know.
  same "the last two of standard output" "$(kubectl logs logs --tail=3 | grep -v '^error$' | tail -n 2 | tr '\n' ' ')" "line 499 unfinished "
  has "time stamps" "$(kubectl logs logs --timestamps --tail=1)" "$(date -u +%Y-)"
  same "limited bytes" "$(kubectl logs logs --limit-bytes=6)" "line 0"
}

together_logs_follow() {
  pod follow <<'SPEC'
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'for i in 1 2 3 4 5; do echo tick $i; sleep 1; done']}
SPEC
  ready follow
  same "what was followed" "$(timeout "$patience" kubectl logs -f follow | tr '\n' ' ')" "tick 1 tick 2 tick 3 tick 4 tick 5 "
}

together_logs_previous() {
  pod previous <<'SPEC'
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'if [ -e /data/was ]; then echo second; sleep 3600; fi; touch /data/was; echo first; exit 4'], volumeMounts: [{name: data, mountPath: /data}]}
volumes: [{name: data, emptyDir: {}}]
SPEC
  soon "the second run" log_has previous second
  same "the previous log" "$(kubectl logs --previous previous)" first
  same "its exit code" "$(field previous '.status.containerStatuses[0].lastState.terminated.exitCode')" 4
  gone previous
}

# A log that is larger than kubelet lets it be is rotated while it is written: no line is lost or doubled.
together_logs_rotation() {
  pod rotated <<'SPEC'
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'i=0; while [ $i -lt 80 ]; do awk -v i=$i "BEGIN { for (n = 0; n < 500; n++) print \"line\", i * 500 + n, \"of those that fill the log\" }"; i=$((i+1)); sleep 0.3; done']}
SPEC
  finished rotated Succeeded
  find "$state/pod-logs" -path '*_rotated_*' -type f >"$scratch/files"
  (($(wc -l <"$scratch/files") > 1)) || fail "the log was never rotated"
  same "different lines in all files" "$(all_logs | sort -u | wc -l)" 40000
  same "lines in all files" "$(all_logs | wc -l)" 40000
}

# all_logs: the numbers of the lines in the files named in $scratch/files; kubelet compresses old ones.
all_logs() {
  local file
  while IFS= read -r file; do
    case $file in
      *.gz) zcat "$file" ;;
      *) cat "$file" ;;
    esac
  done <"$scratch/files" | sed -n 's/.* line \([0-9]*\) of those.*/\1/p'
}
