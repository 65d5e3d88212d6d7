//! Pod networks: namespace, tap, CNI.
