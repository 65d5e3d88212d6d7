//! Sends MSI-X messages. A device signals from any thread; the guest programs the table on vCPU threads.
//!
//! A message is sent by `KVM_SIGNAL_MSI`, not through an eventfd with a route: every device of ours lives in this
//! process, so the eventfd would only be a longer way to the same call, and each change of KVM's routing table (the
//! guest unmasks a dozen vectors while it boots) waits for an SRCU grace period.

use std::fmt::Debug;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::msix::{Message, Msix};
use super::transport::registers::Vectors;
use crate::devices::virtio::Interrupt;

/// Where messages go: KVM, or a test.
pub(crate) trait MessageSink: Send + Sync + Debug {
    fn send(&self, message: Message);
}

/// One function's MSI-X with its way to the guest.
#[derive(Debug, Clone)]
pub(crate) struct MsixInterrupts {
    table: Arc<Mutex<Msix>>,
    sink: Arc<dyn MessageSink>,
}

impl MsixInterrupts {
    pub(crate) fn new(vectors: u16, sink: Arc<dyn MessageSink>) -> Self {
        Self {
            table: Arc::new(Mutex::new(Msix::new(vectors))),
            sink,
        }
    }

    /// The table. What an access releases is to be passed to [`Self::send`].
    pub(crate) fn table(&self) -> MutexGuard<'_, Msix> {
        // The table is plain data and consistent after every statement: a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn send(&self, messages: Vec<Message>) {
        messages.into_iter().for_each(|message| self.sink.send(message));
    }

    fn trigger(&self, vector: u16) {
        let message = self.table().trigger(vector);
        if let Some(message) = message {
            self.sink.send(message);
        }
    }
}

/// What a virtio device signals: its causes, mapped to vectors as the driver chose.
#[derive(Debug)]
pub(crate) struct VirtioInterrupt {
    pub(crate) msix: MsixInterrupts,
    pub(crate) vectors: Arc<Vectors>,
}

impl Interrupt for VirtioInterrupt {
    fn signal_queue(&self, index: u16) {
        if let Some(vector) = self.vectors.queues.get(usize::from(index)) {
            self.msix.trigger(vector.load(Ordering::Acquire));
        }
    }

    fn signal_config(&self) {
        self.msix.trigger(self.vectors.config.load(Ordering::Acquire));
    }
}
