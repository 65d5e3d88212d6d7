//! The doorbells of one device: an eventfd per queue, wired into KVM at the port where the driver rings: of a write to
//! memory KVM has to decode the instruction first.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Connects an eventfd to guest writes at a port (KVM's ioeventfd, or a test).
pub(crate) trait DoorbellWiring: Send + Sync + Debug {
    fn connect(&self, event: &EventFd, port: u16) -> io::Result<()>;
    fn disconnect(&self, event: &EventFd, port: u16) -> io::Result<()>;
}

/// Doorbells of one device. Unwired when dropped.
#[derive(Debug)]
pub(crate) struct Doorbells {
    bells: Vec<Bell>,
    stride: u16,
    wiring: Arc<dyn DoorbellWiring>,
}

#[derive(Debug)]
struct Bell {
    event: Arc<EventFd>,
    wired_at: Option<u16>,
}

impl Doorbells {
    pub(crate) fn new(count: usize, stride: u16, wiring: Arc<dyn DoorbellWiring>) -> io::Result<Self> {
        let bell = || {
            Ok(Bell {
                event: Arc::new(EventFd::new(EFD_NONBLOCK)?),
                wired_at: None,
            })
        };
        let bells = (0..count).map(|_| bell()).collect::<io::Result<_>>()?;
        Ok(Self {
            bells,
            stride,
            wiring,
        })
    }

    /// Each queue's doorbell.
    pub(crate) fn events(&self) -> Vec<Arc<EventFd>> {
        self.bells.iter().map(|bell| Arc::clone(&bell.event)).collect()
    }

    /// Wires all bells from `base` on, or unwires them. A bell that cannot be wired still rings through `ring`.
    pub(crate) fn place(&mut self, base: Option<u16>) {
        for (index, bell) in (0_u16..).zip(&mut self.bells) {
            let port = base.and_then(|base| base.checked_add(self.stride.checked_mul(index)?));
            if bell.wired_at == port {
                continue;
            }
            if let Some(old) = bell.wired_at.take()
                && let Err(error) = self.wiring.disconnect(&bell.event, old)
            {
                tracing::warn!(%error, "cannot take the doorbell at {old:#x} away");
            }
            if let Some(new) = port {
                match self.wiring.connect(&bell.event, new) {
                    Ok(()) => bell.wired_at = Some(new),
                    Err(error) => tracing::warn!(%error, "cannot wire the doorbell at {new:#x}"),
                }
            }
        }
    }

    /// The driver rang, and KVM did not take it.
    pub(crate) fn ring(&self, index: usize) {
        if let Some(bell) = self.bells.get(index) {
            // Fails only when the counter is full: then it is readable already.
            drop(bell.event.write(1));
        }
    }

    /// Forgets what was rung.
    pub(crate) fn silence(&self) {
        // Fails only when nothing was rung.
        self.bells.iter().for_each(|bell| drop(bell.event.read()));
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        self.place(None);
    }
}
