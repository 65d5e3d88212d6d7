//! The host side of one microVM: its directory, its VMM process, its control socket.
