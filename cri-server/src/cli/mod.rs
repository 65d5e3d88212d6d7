//! The subcommands beside `serve`: check, pods, console, gc. Printing goes to a writer that the caller gives.
