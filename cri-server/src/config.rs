//! The daemon's configuration file: one TOML, validated once.
