//! The device table: what a Machine can have, and why.
//!
//! | device          | where                | why                                                        |
//! |-----------------|----------------------|------------------------------------------------------------|
//! | serial port     | ports 0x3F8, IRQ 4   | the guest's console, into the console ring                 |
//! | i8042           | ports 0x60, 0x64     | the guest's reset                                          |
//! | pvpanic         | PCI                  | a panic is not a reboot                                    |
//! | virtio-vsock    | PCI, if configured   | the agent                                                  |
//! | virtio-net      | PCI, from a tap      | the pod's network                                          |
//! | virtio-blk      | PCI, from a file     | scratch disks, volumes                                     |
//! | virtio-pmem     | PCI, from a file     | image layers, shared with the host's page cache            |
//! | virtio-fs       | PCI, from a socket   | volumes that stay shared with the host, by virtiofsd       |
//! | virtio-mem      | PCI, if configured   | a guest that grows and shrinks while it runs               |
//! | virtio-balloon  | PCI, if configured   | what the guest frees goes back to the host                 |

pub(crate) mod function;
pub(crate) mod i8042;
pub(crate) mod pvpanic;
pub(crate) mod ring;
pub(crate) mod serial;
pub(crate) mod table;
pub(crate) mod virtio;
