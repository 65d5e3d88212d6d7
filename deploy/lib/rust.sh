# shellcheck shell=bash
# The Rust toolchain: one that is installed and new enough, or rustup's where there is none. Sourced after log.sh.

# need_rust REPOSITORY: afterwards `cargo` on the PATH is at least as new as the workspace asks for. The toolchain that
# rust-toolchain.toml names comes first; where only a newer one is installed that does as well, and nothing is fetched.
need_rust() {
  local wanted
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$1/Cargo.toml")
  [[ -x $HOME/.cargo/bin/cargo ]] && PATH=$PATH:$HOME/.cargo/bin
  command -v cargo >/dev/null || install_rustup
  if RUSTUP_AUTO_INSTALL=0 cargo_is_at_least "$wanted" "$1"; then return; fi
  command -v rustup >/dev/null ||
    die "Rust $wanted or newer is needed, this is $(cd "$1" && cargo --version 2>&1 | head -n 1), and there is no rustup to update it with"
  if use_installed_toolchain "$wanted" "$1"; then return; fi
  step "installing the Rust toolchain that rust-toolchain.toml names"
  (cd "$1" && RUSTUP_AUTO_INSTALL=1 rustup toolchain install >&2) || die "rustup could not install Rust $wanted"
  cargo_is_at_least "$wanted" "$1" || die "cargo does not run: $(cd "$1" && cargo --version 2>&1 | tail -n 1)"
}

# cargo_is_at_least VERSION REPOSITORY
cargo_is_at_least() {
  local present
  present=$(cd "$2" && cargo --version 2>/dev/null) || return 1
  present=$(sed -n 's/^cargo \([0-9.]*\).*/\1/p' <<<"$present")
  printf '%s\n' "$1" "$present" | sort -V -C
}

# use_installed_toolchain VERSION REPOSITORY: a stable one that is here under another name, if it is new enough.
use_installed_toolchain() {
  local name
  while read -r name _; do
    [[ $name != *nightly* && $name != *beta* ]] || continue
    if RUSTUP_AUTO_INSTALL=0 RUSTUP_TOOLCHAIN=$name cargo_is_at_least "$1" "$2"; then
      export RUSTUP_TOOLCHAIN=$name
      return
    fi
  done < <(rustup toolchain list 2>/dev/null)
  return 1
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
