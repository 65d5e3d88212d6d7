//! The CRI edge: binds the socket, converts, refuses before recovery is done. No decisions.
