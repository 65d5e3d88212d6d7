# shellcheck shell=bash disable=SC2154 # much is set by whoever sources this
# Volumes that kubelet fills: configMaps, secrets, projected ones, the downward API, emptyDirs; and files that it writes itself.

# The program in the pod is told by inotify, as programs that reload their configuration are.
together_config_map_update_seen_by_inotify() {
  fresh configmap live --from-literal=key=old
  pod config-map <<'SPEC'
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'echo watching; exec inotifyd - /etc/live:ynd'], volumeMounts: [{name: live, mountPath: /etc/live}]}
volumes: [{name: live, configMap: {name: live}}]
SPEC
  ready config-map
  same "the first value" "$(inside config-map cat /etc/live/key)" old
  log_has config-map ..data && fail "told before anything changed: $(kubectl logs config-map)"
  kubectl patch configmap live --patch '{"data": {"key": "new", "second": "added"}}'
  soon "the new value" reads config-map /etc/live/key new
  same "the added key" "$(inside config-map cat /etc/live/second)" added
  soon "word by inotify" log_has config-map ..data
  gone config-map
}

# reads POD PATH TEXT
reads() { [[ $(inside "$1" cat "$2") == "$3" ]]; }

together_secret() {
  fresh secret generic hidden --from-literal=user=me --from-literal=password='s3cr3t$'
  pod secret <<'SPEC'
restartPolicy: Never
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, 'cat /secret/renamed; echo; stat -L -c %a /secret/renamed; echo "$USER_NAME"; ls /secret; df -t tmpfs /secret >/dev/null && echo in memory; echo x >/secret/y || echo read-only']
  env: [{name: USER_NAME, valueFrom: {secretKeyRef: {name: hidden, key: user}}}]
  volumeMounts: [{name: hidden, mountPath: /secret, readOnly: true}]
volumes: [{name: hidden, secret: {secretName: hidden, items: [{key: password, path: renamed, mode: 0400}]}}]
SPEC
  finished secret Succeeded
  same log "$(kubectl logs secret | grep -v 'cannot\|can.t' | tr '\n' ' ')" 's3cr3t$ 400 me renamed in memory read-only '
}

# The token by which a pod speaks to apiserver: it is taken out of the pod and used.
together_service_account_token() {
  local token
  token=$(inside tools cat /var/run/secrets/kubernetes.io/serviceaccount/token)
  same "the authority" "$(inside tools cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt)" "$(<"$pki/ca.crt")"
  same "the namespace" "$(inside tools cat /var/run/secrets/kubernetes.io/serviceaccount/namespace)" default
  has "who apiserver takes it for" "$(kubectl --token="$token" --kubeconfig=/dev/null --server="https://127.0.0.1:$api_port" \
    --certificate-authority="$pki/ca.crt" auth whoami -o jsonpath='{.status.userInfo.username}')" system:serviceaccount:default:default
}

together_projected_downward_api_update() {
  pod projected <<'SPEC'
containers:
- name: main
  image: BUSYBOX
  command: [sleep, "3600"]
  resources: {requests: {cpu: 50m}}
  env:
  - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
  volumeMounts: [{name: all, mountPath: /all}]
volumes:
- name: all
  projected:
    sources:
    - {serviceAccountToken: {path: token, audience: someone, expirationSeconds: 600}}
    - {configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: below/ca.crt}]}}
    - downwardAPI:
        items:
        - {path: labels, fieldRef: {fieldPath: metadata.labels}}
        - {path: cpu, resourceFieldRef: {containerName: main, resource: requests.cpu, divisor: 1m}}
SPEC
  ready projected
  same "the requested cpu" "$(inside projected cat /all/cpu)" 50
  has "the token" "$(inside projected cat /all/token)" .
  same "the authority" "$(inside projected cat /all/below/ca.crt)" "$(<"$pki/ca.crt")"
  same environment "$(inside projected printenv POD_IP NODE | tr '\n' ' ')" "$(field projected .status.podIP) $node "
  kubectl label pod projected added=later
  soon "the new label" file_has projected /all/labels 'added="later"'
  gone projected
}

# file_has POD PATH TEXT
file_has() { [[ $(inside "$1" cat "$2") == *"$3"* ]]; }

# Shared by both containers, there after a restart; the one in memory is as large as it may be.
together_empty_dir() {
  pod empty <<'SPEC'
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'trap "exit 1" TERM; while :; do sleep 0.2; done'], volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}]}
- {name: other, image: BUSYBOX, command: [sleep, "3600"], volumeMounts: [{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}]}
volumes: [{name: disk, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory, sizeLimit: 16Mi}}]
SPEC
  ready empty
  kubectl exec empty -c main -- sh -c 'echo one >/disk/file; echo two >/memory/file'
  same "what the other reads" "$(kubectl exec empty -c other -- cat /disk/file /memory/file | tr '\n' ' ')" "one two "
  same "KiB in memory" "$(kubectl exec empty -c other -- sh -c 'df -k /memory | tail -n 1' | awk '{ print $2 }')" 16384
  kubectl exec empty -c other -- sh -c 'head -c 20000000 /dev/zero >/memory/full 2>/dev/null' && fail "it took more than its limit"
  kubectl exec empty -c other -- rm /memory/full
  kubectl exec empty -c main -- kill 1
  soon "a restart" main_runs_again empty
  same "what is there after the restart" "$(kubectl exec empty -c main -- cat /disk/file /memory/file | tr '\n' ' ')" "one two "
  gone empty
}

main_runs_again() {
  field_is "$1" '.status.containerStatuses[?(@.name=="main")].restartCount' 1 &&
    [[ -n $(field "$1" '.status.containerStatuses[?(@.name=="main")].state.running.startedAt') ]]
}

# kubelet looks how large it is, on its own disk, and evicts.
together_empty_dir_limit_evicts() {
  pod evicted <<'SPEC'
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'head -c 30000000 /dev/zero >/data/large; sleep 3600'], volumeMounts: [{name: data, mountPath: /data}]}
volumes: [{name: data, emptyDir: {sizeLimit: 5Mi}}]
SPEC
  finished evicted Failed
  same reason "$(field evicted .status.reason)" Evicted
  has message "$(field evicted .status.message)" 'EmptyDir volume "data" exceeds the limit'
}

together_hosts_and_resolver() {
  pod names <<'SPEC'
hostname: called
subdomain: below
hostAliases: [{ip: 192.0.2.7, hostnames: [alias.example]}]
dnsPolicy: None
dnsConfig: {nameservers: [192.0.2.53], searches: [search.example], options: [{name: ndots, value: "3"}]}
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'hostname; cat /etc/hosts /etc/resolv.conf']}
SPEC
  finished names Succeeded
  local log
  log=$(kubectl logs names)
  same hostname "$(head -n 1 <<<"$log")" called
  has "/etc/hosts" "$log" $'192.0.2.7\talias.example'
  has "/etc/hosts" "$log" "$(field names .status.podIP)"
  has "/etc/resolv.conf" "$log" "nameserver 192.0.2.53"
  has "/etc/resolv.conf" "$log" "search search.example"
  has "/etc/resolv.conf" "$log" "options ndots:3"
}
