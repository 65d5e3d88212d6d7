//! The whole device against real unix sockets, with a driver that the test plays.

mod driver;
mod flow;
mod guest_opens;
mod host_opens;
mod hostile;
mod model;
mod restored;
