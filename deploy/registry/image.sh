# shellcheck shell=bash
# Images out of directories, and their way into a registry that asks for no credentials: the OCI image format and
# distribution protocol with tar, gzip and curl. Sourced after log.sh, not run.

digest() { echo "sha256:$(sha256sum "$1" | cut -d ' ' -f 1)"; }
size() { stat -c %s "$1"; }

# pack_layer DIRECTORY LAYER: LAYER.tar and LAYER.tar.gz, the same bytes from the same content: owners and times are fixed.
pack_layer() {
  tar --create --directory "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --file "$2.tar" .
  gzip -n -c "$2.tar" >"$2.tar.gz"
}

# image_config JSON LAYER...: prints the configuration of an image of these layers that runs as JSON says.
image_config() {
  local layer ids=''
  for layer in "${@:2}"; do ids+=${ids:+,}\"$(digest "$layer.tar")\"; done
  printf '{"architecture":"amd64","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":[%s]}}\n' "$1" "$ids"
}

# image_manifest CONFIG-FILE LAYER...: prints the manifest.
image_manifest() {
  local layer layers='' type=application/vnd.oci.image
  for layer in "${@:2}"; do layers+=${layers:+,}$(descriptor "$type.layer.v1.tar+gzip" "$layer.tar.gz"); done
  printf '{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[%s]}\n' "$type.manifest.v1+json" \
    "$(descriptor "$type.config.v1+json" "$1")" "$layers"
}

descriptor() { printf '{"mediaType":"%s","digest":"%s","size":%s}' "$1" "$(digest "$2")" "$(size "$2")"; }

# push_blob REGISTRY-URL NAME FILE: in one request, after asking for a place to put it. Nothing when it is there.
push_blob() {
  local registry=$1 name=$2 file=$3 location answer
  if curl -fsS -o /dev/null -I "$registry/v2/$name/blobs/$(digest "$file")" 2>/dev/null; then return; fi
  answer=$(curl -sS -D - -o /dev/null -X POST "$registry/v2/$name/blobs/uploads/") || die "$registry does not answer"
  location=$(sed -n 's/^[Ll]ocation: *//p' <<<"$answer" | tr -d '\r')
  [[ -n $location ]] || die "$registry gave no upload location: ${answer%%$'\r'*}"
  [[ $location == http* ]] || location=$registry$location
  [[ $location == *\?* ]] && location+="&" || location+="?"
  curl -fsS -o /dev/null -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$file" \
    "${location}digest=$(digest "$file")" || die "upload of $file was refused"
}

# push_image REGISTRY-URL NAME TAG CONFIG-JSON LAYER...: prints the manifest's digest; its files lie beside the first layer.
push_image() {
  local registry=$1 name=$2 tag=$3 json=$4 layer config=$5.config.json manifest=$5.manifest.json
  shift 4
  image_config "$json" "$@" >"$config"
  image_manifest "$config" "$@" >"$manifest"
  for layer; do push_blob "$registry" "$name" "$layer.tar.gz"; done
  push_blob "$registry" "$name" "$config"
  curl -fsS -o /dev/null -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' \
    --data-binary "@$manifest" "$registry/v2/$name/manifests/$tag" || die "the manifest of $name:$tag was refused"
  digest "$manifest"
}

# busybox_root BUSYBOX DIRECTORY: one binary under all its names, hard links as in the image of that name.
busybox_root() {
  mkdir -p "$2"/{bin,dev,etc,home,proc,root,run,sys,tmp,usr/bin,var/log,www}
  chmod 1777 "$2/tmp"
  chmod 700 "$2/root"
  cp "$1" "$2/bin/busybox"
  # It links itself, by the path that it was started with: one process where a loop would take hundreds.
  "$2/bin/busybox" --install "$2/bin"
}

# add_program NAME DIRECTORY: a program of this host at its own path, with the libraries that it loads.
add_program() {
  local program files
  program=$(command -v "$1") || die "$1 is not installed here"
  # Of the kernel's own library ldd(1) tells no path.
  mapfile -t files < <(echo "$program" && ldd "$program" | grep -oE '/[^ ]+')
  cp -L --parents "${files[@]}" "$2"
}
