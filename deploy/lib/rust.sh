# shellcheck shell=bash
# The Rust toolchain: the one on the PATH, or rustup's where there is none. Sourced after log.sh.

# need_rust REPOSITORY: afterwards `cargo` on the PATH is at least as new as the workspace asks for.
need_rust() {
  local wanted
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$1/Cargo.toml")
  [[ -x $HOME/.cargo/bin/cargo ]] && PATH=$PATH:$HOME/.cargo/bin
  command -v cargo >/dev/null || install_rustup
  local present
  present=$(cd "$1" && cargo --version 2>&1 | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
  [[ -n $present ]] || die "cargo does not run in $1: $(cd "$1" && cargo --version 2>&1 | head -n 1)"
  printf '%s\n' "$wanted" "$present" | sort -V -C || die "Rust $wanted or newer is needed and this is $present: rustup update"
}

install_rustup() {
  local installer
  step "installing Rust with rustup into ~/.cargo and ~/.rustup"
  installer=$(mktemp)
  curl --proto '=https' --tlsv1.2 -fsSL --retry 3 -o "$installer" https://sh.rustup.rs ||
    die "no cargo on the PATH, and rustup cannot be fetched from https://sh.rustup.rs: install Rust (rust-toolchain.toml says which) and try again"
  sh "$installer" -y --quiet --profile minimal --default-toolchain none --no-modify-path || die "rustup's installer failed"
  rm -f "$installer"
  PATH=$PATH:$HOME/.cargo/bin
}
