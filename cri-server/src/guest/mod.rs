//! The daemon's client of the agent in a guest.
