//! KVM's part of a transport, for tests and fuzz targets: remembers messages and wired doorbells.

use std::io;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use super::doorbells::DoorbellWiring;
use crate::pci::interrupt::MessageSink;
use crate::pci::msix::Message;

/// What was sent and what is wired.
#[derive(Debug, Default)]
pub(crate) struct FakeKvm {
    pub(crate) sent: Mutex<Vec<Message>>,
    pub(crate) wired: Mutex<Vec<u16>>,
}

impl MessageSink for FakeKvm {
    fn send(&self, message: Message) {
        self.sent.lock().expect("no test panics with it").push(message);
    }
}

impl DoorbellWiring for FakeKvm {
    fn connect(&self, _: &EventFd, port: u16) -> io::Result<()> {
        self.wired.lock().expect("no test panics with it").push(port);
        Ok(())
    }

    fn disconnect(&self, _: &EventFd, port: u16) -> io::Result<()> {
        let mut wired = self.wired.lock().expect("no test panics with it");
        let position = wired
            .iter()
            .position(|at| *at == port)
            .ok_or(io::ErrorKind::NotFound)?;
        wired.remove(position);
        Ok(())
    }
}
