//! What changed in containers and sandboxes, for whoever listens.
