# shellcheck shell=bash disable=SC2154 # much is set by whoever sources this
# Volumes that are the host's or an image's: hostPath, subPath, images, raw block devices.

together_host_path() {
  mkdir "$scratch/directory"
  echo from the host >"$scratch/directory/file"
  echo alone >"$scratch/single"
  pod host-path <<'SPEC'
containers:
- name: main
  image: BUSYBOX
  command: [sleep, "3600"]
  volumeMounts:
  - {name: directory, mountPath: /directory}
  - {name: directory, mountPath: /fixed, readOnly: true}
  - {name: single, mountPath: /single}
  - {name: made, mountPath: /made}
volumes:
- {name: directory, hostPath: {path: SCRATCH/directory, type: Directory}}
- {name: single, hostPath: {path: SCRATCH/single, type: File}}
- {name: made, hostPath: {path: SCRATCH/made, type: DirectoryOrCreate}}
SPEC
  ready host-path
  same "the host's file" "$(inside host-path cat /directory/file /fixed/file /single | tr '\n' ' ')" "from the host from the host alone "
  shell host-path 'echo from the pod >/directory/back; echo more >>/single; echo there >/made/file'
  same "what came back" "$(cat "$scratch/directory/back" "$scratch/single" "$scratch/made/file" | tr '\n' ' ')" "from the pod alone more there "
  shell host-path 'echo no >/fixed/file' && fail "a read-only mount was written to"
  echo changed >"$scratch/directory/file"
  soon "a change on the host" reads host-path /directory/file changed
  gone host-path
  same "after the pod" "$(<"$scratch/directory/file")" changed
}

# Below a read-only directory lies another file system, which is read-only too only if that is asked for.
together_recursive_read_only() {
  [[ $(kubectl get node "$node" -o jsonpath='{.status.runtimeHandlers[?(@.name=="")].features.recursiveReadOnlyMounts}') == true ]] ||
    fail "the node does not say that it can"
  mkdir -p "$scratch/outer/inner"
  mount -t tmpfs below "$scratch/outer/inner"
  pod recursive <<'SPEC'
restartPolicy: Never
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, 'for path in plain deep; do for file in x inner/x; do touch /$path/$file 2>/dev/null && echo $path/$file; done; done; true']
  volumeMounts:
  - {name: outer, mountPath: /plain, readOnly: true}
  - {name: outer, mountPath: /deep, readOnly: true, recursiveReadOnly: Enabled}
volumes: [{name: outer, hostPath: {path: SCRATCH/outer}}]
SPEC
  finished recursive Succeeded
  umount "$scratch/outer/inner"
  same "what could be written" "$(kubectl logs recursive)" plain/inner/x
  same "what is told" "$(field recursive '.status.containerStatuses[0].volumeMounts[?(@.mountPath=="/deep")].recursiveReadOnly')" Enabled
}

together_sub_path() {
  mkdir -p "$scratch/a/b"
  echo deep >"$scratch/a/b/file"
  fresh configmap parts --from-literal=one=first --from-literal=two=second
  pod sub-path <<'SPEC'
restartPolicy: Never
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, 'cat /here/file /one; echo mine >/own/file; ls /etc/parts']
  env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
  volumeMounts:
  - {name: host, mountPath: /here, subPath: a/b}
  - {name: host, mountPath: /own, subPathExpr: of-$(POD)}
  - {name: parts, mountPath: /one, subPath: one}
  - {name: parts, mountPath: /etc/parts/two, subPath: two}
volumes: [{name: host, hostPath: {path: SCRATCH}}, {name: parts, configMap: {name: parts}}]
SPEC
  finished sub-path Succeeded
  same log "$(kubectl logs sub-path | tr -d '\n')" deepfirsttwo
  same "the directory of its own" "$(<"$scratch/of-sub-path/file")" mine
}

together_image_volume() {
  pod image-volume <<'SPEC'
restartPolicy: Never
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, 'cat /whole/www/index.html; ls /part; touch /whole/x 2>/dev/null || echo read-only']
  volumeMounts: [{name: whole, mountPath: /whole}, {name: whole, mountPath: /part, subPath: usr/local/bin}]
volumes: [{name: whole, image: {reference: IMAGES/httpd:2.4.39-4, pullPolicy: IfNotPresent}}]
SPEC
  finished image-volume Succeeded
  same log "$(kubectl logs image-volume | tr '\n' ' ')" "the page of the stand-in httpd-foreground read-only "
}

# A volume whose contents are those of a device; nobody binds claims here, so that is done by hand.
together_raw_block() {
  local device raw=raw-$SRANDOM
  truncate -s 16M "$scratch/disk"
  device=$(losetup --find --show "$scratch/disk") || skip "no loop device can be had"
  echo "$device" >"$scratch/device"
  kubectl create -f - <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: {name: $raw}
spec:
  capacity: {storage: 16Mi}
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  storageClassName: by-hand
  claimRef: {namespace: default, name: $raw}
  local: {path: $device}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [$node]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $raw, annotations: {pv.kubernetes.io/bind-completed: "yes"}}
spec: {accessModes: [ReadWriteOnce], volumeMode: Block, storageClassName: by-hand, volumeName: $raw, resources: {requests: {storage: 16Mi}}}
YAML
  kubectl patch pv "$raw" --patch "{\"spec\": {\"claimRef\": {\"uid\": \"$(kubectl get pvc $raw -o jsonpath='{.metadata.uid}')\"}}}"
  kubectl patch pv "$raw" --subresource=status --patch '{"status": {"phase": "Bound"}}'
  kubectl patch pvc "$raw" --subresource=status --patch '{"status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "16Mi"}}}'
  pod raw-block <<SPEC
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, 'test -b /dev/raw && echo to the device | dd of=/dev/raw conv=fsync && blockdev --getsize64 /dev/raw'], volumeDevices: [{name: raw, devicePath: /dev/raw}]}
volumes: [{name: raw, persistentVolumeClaim: {claimName: $raw}}]
SPEC
  finished raw-block Succeeded
  has "its size" "$(kubectl logs raw-block)" 16777216
  gone raw-block
  same "what the device has" "$(head -c 13 "$scratch/disk")" "to the device"
  losetup --detach "$device"
}
