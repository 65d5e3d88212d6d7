# shellcheck shell=bash disable=SC2154 # much is set by whoever sources this
# Who a container's processes are and what they may do.

# says POD COMMAND FIELDS-OF-THE-POD: runs it to its end; the container's fields come on standard input. Prints its log.
says() {
  {
    printf 'restartPolicy: Never\n%s\ncontainers:\n- name: main\n  image: BUSYBOX\n  command:\n  - sh\n  - -c\n  - |\n    %s\n' "$3" "$2"
    sed 's/^/  /'
  } | pod "$1"
  finished "$1" Succeeded
  kubectl logs "$1"
}

together_run_as_user_and_group() {
  same ids "$(says user 'id -u; id -g; touch /etc/x 2>/dev/null || echo no' 'securityContext: {runAsUser: 1500}' <<<'securityContext: {runAsGroup: 1600}' | tr '\n' ' ')" "1500 1600 no "
}

together_run_as_non_root_is_refused() {
  pod non-root <<'SPEC'
securityContext: {runAsNonRoot: true}
containers:
- {name: main, image: BUSYBOX, command: [id]}
SPEC
  soon "CreateContainerConfigError" field_is non-root '.status.containerStatuses[0].state.waiting.reason' CreateContainerConfigError
  has message "$(field non-root '.status.containerStatuses[0].state.waiting.message')" "will run as root"
  gone non-root
}

together_fs_group() {
  local log
  log=$(says fs-group 'id -G; stat -c "%g %a" /data; touch /data/x && stat -c %g /data/x; stat -L -c "%g" /var/run/secrets/kubernetes.io/serviceaccount/token' \
    'securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 4242}
volumes: [{name: data, emptyDir: {}}]' <<<'volumeMounts: [{name: data, mountPath: /data}]')
  same "groups, directory, file, token" "$(tr '\n' ' ' <<<"$log")" "1000 4242 4242 2777 4242 4242 "
}

# The image's own groups count with one policy only.
together_supplemental_groups_policy() {
  local policy
  for policy in Merge Strict; do
    pod "groups-${policy,}" <<SPEC
restartPolicy: Never
securityContext: {runAsUser: 1000, supplementalGroups: [60000], supplementalGroupsPolicy: $policy}
containers:
- {name: main, image: registry.k8s.io/k8s-staging-cri-tools/test-image-predefined-group:latest, command: [id, -G]}
SPEC
  done
  finished groups-merge Succeeded
  finished groups-strict Succeeded
  same "merged groups" "$(kubectl logs groups-merge | tr ' ' '\n' | sort -n | tr '\n' ' ')" "1000 50000 60000 "
  same "strict groups" "$(kubectl logs groups-strict | tr ' ' '\n' | sort -n | tr '\n' ' ')" "1000 60000 "
  same "what is told" "$(field groups-strict '.status.containerStatuses[0].user.linux.supplementalGroups')" "[1000,60000]"
}

together_capabilities() {
  local log
  log=$(says capabilities 'grep CapEff /proc/self/status; chown 1:1 /tmp 2>/dev/null && echo chown; ip link set lo down 2>/dev/null && echo net; true' '' \
    <<<'securityContext: {capabilities: {drop: [ALL], add: [NET_ADMIN]}}')
  has log "$log" "0000000000001000"
  has log "$log" net
  [[ $log != *chown* ]] || fail "a dropped capability was used"
}

together_read_only_root() {
  same log "$(says read-only 'touch /x 2>/dev/null || echo read-only; touch /tmp/y && echo written' 'volumes: [{name: tmp, emptyDir: {}}]' \
    <<<'securityContext: {readOnlyRootFilesystem: true}
volumeMounts: [{name: tmp, mountPath: /tmp}]' | tr '\n' ' ')" "read-only written "
}

together_seccomp() {
  mkdir -p "$state/kubelet/seccomp"
  echo '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}' >"$state/kubelet/seccomp/no-mkdir.json"
  local command='sed -n "s/^Seccomp:[^0-9]*//p" /proc/self/status; mkdir /tmp/x 2>/dev/null && echo made; true'
  same "RuntimeDefault" "$(says seccomp-default "$command" '' <<<'securityContext: {seccompProfile: {type: RuntimeDefault}}' | tr '\n' ' ')" "2 made "
  same "Unconfined" "$(says seccomp-none "$command" '' <<<'securityContext: {seccompProfile: {type: Unconfined}}' | tr '\n' ' ')" "0 made "
  same "Localhost" "$(says seccomp-own "$command" '' <<<'securityContext: {seccompProfile: {type: Localhost, localhostProfile: no-mkdir.json}}' | tr '\n' ' ')" "2 "
}

together_no_new_privileges() {
  same log "$(says nnp 'sed -n "s/^NoNewPrivs:[^0-9]*//p" /proc/self/status' '' <<<'securityContext: {allowPrivilegeEscalation: false}')" 1
}

together_sysctls() {
  local log
  log=$(says sysctls 'cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax' \
    'securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "77"}, {name: kernel.msgmax, value: "16384"}]}' </dev/null)
  same "what they are" "$(tr '\n' ' ' <<<"$log")" "77 16384 "
}

# Everything in the guest, nothing of the host.
together_privileged() {
  local log
  log=$(says privileged 'grep CapEff /proc/self/status; mount -t tmpfs none /mnt 2>&1 || { mkdir -p /mnt && mount -t tmpfs none /mnt; }; grep -c " /mnt " /proc/mounts; echo 1 >/proc/sys/vm/drop_caches && echo sysctl; cat /proc/cmdline; ls /dev | wc -l' '' \
    <<<'securityContext: {privileged: true}')
  has log "$log" $'\n1\nsysctl'
  [[ $(sed -n 's/^CapEff:[^0-9a-f]*//p' <<<"$log") =~ ^0*1[f]+$|^0*[f3]f+$ ]] || fail "not all capabilities: $log"
  [[ $log != *"$(</proc/cmdline)"* ]] || fail "it sees the host's kernel"
}

together_share_process_namespace() {
  pod shared-pids <<'SPEC'
shareProcessNamespace: true
containers:
- {name: one, image: BUSYBOX, command: [sleep, "3601"]}
- {name: two, image: BUSYBOX, command: [sleep, "3602"]}
SPEC
  ready shared-pids
  has "processes that two sees" "$(kubectl exec shared-pids -c two -- ps)" "sleep 3601"
  gone shared-pids
}

# kubectl debug puts a container into a pod that runs, with the process namespace of another.
together_ephemeral_container() {
  shell_pod debugged </dev/null
  kubectl debug debugged --image "$busybox" --image-pull-policy IfNotPresent --target main --container late --profile general -- sh -c 'ps; exec sleep 3600'
  soon "the ephemeral container" ephemeral_runs debugged
  soon "its log" log_of_late_has debugged "sleep 3600"
  same "its restarts" "$(field debugged '.status.containerStatuses[0].restartCount')" 0
  gone debugged
}

ephemeral_runs() { [[ -n $(field "$1" '.status.ephemeralContainerStatuses[0].state.running.startedAt') ]]; }
log_of_late_has() { [[ $(kubectl logs "$1" -c late) == *"$2"* ]]; }

together_host_network() {
  pod host-network <<'SPEC'
hostNetwork: true
containers:
- {name: main, image: BUSYBOX, command: [sleep, "3600"]}
SPEC
  ready host-network
  same "its address" "$(field host-network .status.podIP)" "$address"
  has "its interfaces" "$(inside host-network ip address)" "$address"
  same "its host name" "$(inside host-network hostname)" "$(hostname)"
  gone host-network
}

together_host_pid() {
  has "what it sees" "$(says host-pid 'cat /proc/1/cmdline | tr "\0" " "; ps | grep -c kube-apiserver' 'hostPID: true' </dev/null)" "$(tr '\0' ' ' </proc/1/cmdline)"
}

# On a node whose runtime has no user namespaces kubelet says so; then this is not tried further.
together_user_namespace() {
  if [[ $(kubectl get node "$node" -o jsonpath='{.status.runtimeHandlers[?(@.name=="")].features.userNamespaces}') != true ]]; then
    skip "the runtime says that it offers no user namespaces (hostUsers: false)"
  fi
  has "the mapping" "$(says user-namespace 'cat /proc/self/uid_map; id -u' 'hostUsers: false' </dev/null)" 65536
}

# Kubernetes lets only pods with user namespaces ask for it.
together_proc_mount_unmasked() {
  if [[ $(kubectl get node "$node" -o jsonpath='{.status.runtimeHandlers[?(@.name=="")].features.userNamespaces}') != true ]]; then
    skip "needs a pod with a user namespace, which the runtime says that it does not offer"
  fi
  same "masked paths" "$(says proc-mount 'grep -c " /proc/" /proc/mounts || true' 'hostUsers: false' <<<'securityContext: {procMount: Unmasked}')" 0
}
