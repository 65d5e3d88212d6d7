//! Compiles `proto/**/*.proto` for the crate `proto`, and nothing else.
//!
//! The workspace root is virtual and cannot run a build script, so `proto/Cargo.toml` names this file; the working
//! directory is `proto/`. protox is a protobuf compiler in Rust: no `protoc` is needed on the build machine.
//! Without the features `cri` and `agent` there is nothing to do, and no code generator is built either.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../build.rs");
    #[cfg(feature = "cri")]
    generate::services("cri/v1/api.proto", "cri")?;
    #[cfg(feature = "agent")]
    generate::services("agent/v1/agent.proto", "agent")?;
    Ok(())
}

#[cfg(any(feature = "cri", feature = "agent"))]
mod generate {
    use std::{env, error::Error, fs, path::PathBuf};

    use prost::Message as _;

    /// Messages whose `Debug` is written by hand, because they hold secrets (`src/cri.rs`).
    const REDACTED: [&str; 1] = [".runtime.v1.AuthConfig"];

    /// Messages, client and server of one file, and its descriptor as `$OUT_DIR/<name>.fds`.
    pub(crate) fn services(file: &str, name: &str) -> Result<(), Box<dyn Error>> {
        println!("cargo::rerun-if-changed={file}");
        let descriptors = protox::compile([file], ["."])?;
        let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
        fs::write(out_dir.join(format!("{name}.fds")), descriptors.encode_to_vec())?;

        // No transport in the generated code: who connects, and over what, is the crates' own business.
        tonic_prost_build::configure()
            .build_transport(false)
            .skip_debug(REDACTED)
            .compile_fds(descriptors)?;
        Ok(())
    }
}
