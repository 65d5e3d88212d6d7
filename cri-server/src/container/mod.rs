//! CRI containers: state, and the translation of their configuration for the agent.
