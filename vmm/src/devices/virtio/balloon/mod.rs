//! virtio-balloon (virtio 1.2, section 5.5): memory that the guest does not need goes back to the host.
//!
//! # Protocol primer
//!
//! Free page reporting is why a Machine has one: the guest's kernel collects free pages of 2 MiB and more and reports them,
//! as the buffers of a chain, while they are held; when the chain is used the host has taken the pages and the guest may
//! touch them again, at the price of a fault. Nobody has to decide anything.
//!
//! The balloon proper: the host sets `num_pages`, the driver takes that many pages from its own memory and sends their
//! numbers (4 KiB each) on the inflate queue, or gets them back by the deflate queue; before the guest runs out of memory it
//! deflates by itself. Queues 0 and 1 are these. The statistics queue is not offered: the agent measures inside the guest.
//! The reporting queue is number 4, but drivers that leave no gap for the queues which are not offered take 2 or 3
//! (Linux did for years), so whichever of the three is enabled is the one.
//!
//! [`pages`] reads what the driver sends, [`device`] is the device.

mod device;
mod pages;

#[cfg(test)]
mod tests;

pub(crate) use device::{Balloon, SavedBalloon};
