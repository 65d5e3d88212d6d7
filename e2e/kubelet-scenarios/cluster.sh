# shellcheck shell=bash disable=SC2154 # much is set by whoever sources this
# A node of one's own: registry, clearpod, etcd, kube-apiserver and kubelet, all from $kit and $bundle, with everything that they
# write below $run and $state. Sourced after log.sh and server.sh by e2e/kubelet-in-node and by scenarios, which may end clearpod
# and kubelet and start them again: those two are known by their pid files.

# Below these lies what the processes write; the rest is where they are reached. Exported for scenarios.
export socket=$run/clearpod.sock
export KUBECONFIG=$run/kubeconfig
export CRI_CONFIG_FILE=$run/crictl.yaml
pki=$run/pki

# begin NAME LOG COMMAND...: in a session of its own, so that nothing that is sent to a scenario reaches it, and without the
# descriptor by which a scenario tells how it ended, for which somebody waits.
begin() {
  local name=$1 log=$2
  shift 2
  setsid "$@" >>"$log" 2>&1 </dev/null 3>&- &
  echo $! >"$run/$name.pid"
}

pid_of() { cat "$run/$1.pid" 2>/dev/null; }
is_up() { kill -0 "$(pid_of "$1")" 2>/dev/null; }

# end NAME: nothing when it does not run.
end() {
  end_process "$(pid_of "$1")"
  rm -f "$run/$1.pid"
}

write_clearpod_config() {
  write_daemon_config "$bundle" "$run" "$state" "$bridge"
  sed -i '/^\[machine\]/a memory_mib = 256' "$run/config.toml"
  cat >>"$run/config.toml" <<TOML
[image.registries."registry.k8s.io"]
endpoints = [{ url = "http://127.0.0.1:$registry_port" }]
endpoints_only = true
[host_pods]
enabled = true
privileged = false
# As patient as the scenarios are.
[deadlines]
boot_s = 180
stats_s = 10
TOML
  printf '%s-endpoint: unix://%s\n' runtime "$socket" image "$socket" >"$CRI_CONFIG_FILE"
  echo 'timeout: 120' >>"$CRI_CONFIG_FILE"
}

start_clearpod() {
  begin clearpod "$results/clearpod.log" env NO_COLOR=1 clearpod --config "$run/config.toml" serve
  wait_for_server "$(pid_of clearpod)" "$results/clearpod.log" crictl version || die "clearpod: $cause"
}

# write_kubelet_config MORE: MORE is lines of YAML for one of the two ways in which kubelet is run.
write_kubelet_config() {
  mkdir -p "$run/manifests"
  cat >"$run/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
port: $kubelet_port
healthzPort: 0
containerRuntimeEndpoint: unix://$socket
cgroupDriver: cgroupfs
failSwapOn: false
makeIPTablesUtilChains: false
podLogsDir: $state/pod-logs
staticPodPath: $run/manifests
# What Kubernetes does once a minute is waited for here.
syncFrequency: 5s
fileCheckFrequency: 2s
volumeStatsAggPeriod: 5s
nodeStatusUpdateFrequency: 5s
containerLogMaxSize: 1Mi
containerLogMaxFiles: 20
containerLogMonitorInterval: 3s
crashLoopBackOff: {maxContainerRestartPeriod: 10s}
# The node's disk may be nearly full and is not what is tested.
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 99
imageGCLowThresholdPercent: 98
allowedUnsafeSysctls: ["kernel.msg*"]
$1
YAML
}

# start_kubelet VERSION [ARGUMENT...]
start_kubelet() {
  local version=$1
  shift
  printf '%s\n' "$version" "$@" >"$run/kubelet.arguments"
  begin kubelet "$results/kubelet.log" "kubelet-$version" --config "$run/kubelet.yaml" --root-dir "$state/kubelet" \
    --cert-dir "$state/kubelet/pki" --hostname-override "$node" --node-ip "$address" --v 2 "$@"
  wait_for 180 "kubelet $version does not answer" kubelet_answers ||
    die "$cause; the end of its log: $(tail -n 3 "$results/kubelet.log")"
}

# start_kubelet_again: as it was started last.
start_kubelet_again() {
  local -a arguments
  mapfile -t arguments <"$run/kubelet.arguments"
  start_kubelet "${arguments[@]}"
}

# kubelet_get PATH [ARGUMENT...]: of its own HTTPS server, which wants to know who asks once there is an apiserver.
kubelet_get() {
  local identity=()
  [[ ! -e $pki/admin.crt ]] || identity=(--cert "$pki/admin.crt" --key "$pki/admin.key")
  curl -skf --max-time 30 "${identity[@]}" "https://127.0.0.1:$kubelet_port$1" "${@:2}"
}
kubelet_answers() { is_up kubelet && kubelet_get /healthz; }

# certificate NAME SUBJECT [ALTERNATIVE-NAMES]: signed by the cluster's authority, which is made at the first one.
certificate() {
  local -a make=(openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2)
  mkdir -p "$pki"
  [[ -e $pki/ca.crt ]] || "${make[@]}" -subj /CN=authority -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>/dev/null
  "${make[@]}" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -subj "$2" ${3:+-addext "subjectAltName=$3"} \
    -addext basicConstraints=critical,CA:FALSE -keyout "$pki/$1.key" -out "$pki/$1.crt" 2>/dev/null || die "openssl could not make $1"
}

# write_kubeconfig FILE NAME: for whoever has that certificate.
write_kubeconfig() {
  cat >"$1" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "https://127.0.0.1:$api_port", certificate-authority: $pki/ca.crt}}]
users: [{name: $2, user: {client-certificate: $pki/$2.crt, client-key: $pki/$2.key}}]
contexts: [{name: here, context: {cluster: here, user: $2}}]
current-context: here
YAML
}

make_identities() {
  certificate admin /O=system:masters/CN=admin
  certificate node "/O=system:nodes/CN=system:node:$node"
  certificate api /CN=kube-apiserver "IP:127.0.0.1,IP:$address,DNS:kubernetes.default.svc"
  openssl ecparam -name prime256v1 -genkey -noout -out "$pki/accounts.key"
  write_kubeconfig "$KUBECONFIG" admin
  write_kubeconfig "$run/kubelet.kubeconfig" node
}

start_etcd() {
  begin etcd "$results/etcd.log" etcd --data-dir "$state/etcd" --unsafe-no-fsync \
    --listen-client-urls "http://127.0.0.1:$etcd_port" --advertise-client-urls "http://127.0.0.1:$etcd_port" \
    --listen-peer-urls "http://127.0.0.1:$((etcd_port + 1))"
}

start_apiserver() {
  begin apiserver "$results/apiserver.log" kube-apiserver --etcd-servers "http://127.0.0.1:$etcd_port" \
    --bind-address 127.0.0.1 --advertise-address "$address" --secure-port "$api_port" --cert-dir "$pki" \
    --tls-cert-file "$pki/api.crt" --tls-private-key-file "$pki/api.key" --client-ca-file "$pki/ca.crt" \
    --kubelet-client-certificate "$pki/admin.crt" --kubelet-client-key "$pki/admin.key" \
    --kubelet-preferred-address-types InternalIP --authorization-mode AlwaysAllow --allow-privileged \
    --feature-gates ContainerStopSignals=true \
    --service-account-issuer https://kubernetes.default.svc --service-cluster-ip-range 10.214.0.0/24 \
    --service-account-signing-key-file "$pki/accounts.key" --service-account-key-file "$pki/accounts.key"
  wait_for 300 "kube-apiserver does not answer" kubectl get --raw /readyz ||
    die "$cause; the end of its log: $(tail -n 3 "$results/apiserver.log")"
}

# What controllers would make: the account of pods and the authority that they trust; and a class that tells kubelet what a
# Machine takes beside its containers, for pods whose memory is limited.
make_objects() {
  kubectl create serviceaccount default >/dev/null
  kubectl create configmap kube-root-ca.crt --from-file ca.crt="$pki/ca.crt" >/dev/null
  kubectl create -f - <<'YAML' >/dev/null
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: clearpod}
handler: clearpod
overhead: {podFixed: {memory: 160Mi, cpu: 100m}}
YAML
}
