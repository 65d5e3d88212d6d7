//! Flow control of one connection, both directions (virtio 1.2, 5.10.6.3). Pure numbers.
//!
//! All counters are free-running and wrap at 32 bits, as on the wire. What the guest tells is not trusted: a window that
//! it makes up can only stop its own stream, because the difference of two counters is cut to the window's size.

/// What the host side buffers per connection, in bytes: told to the guest as `buf_alloc`. A guest that may have 1024
/// connections to stalled readers can make the VMM hold 1024 times this.
pub(super) const BUFFER_BYTES: u32 = 256 * 1024;

/// The guest has sent more than it was allowed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest sent {length} bytes with {in_flight} of {BUFFER_BYTES} bytes in flight")]
pub(super) struct CreditOverrun {
    pub(super) length: u32,
    pub(super) in_flight: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Credit {
    /// Bytes that came from the guest.
    received: u32,
    /// Of these, bytes that have reached the host's socket: our `fwd_cnt`.
    forwarded: u32,
    /// The `fwd_cnt` that the guest knows.
    announced: u32,
    /// Bytes that went to the guest.
    sent: u32,
    /// The guest's `fwd_cnt`.
    guest_forwarded: u32,
    /// The guest's `buf_alloc`.
    guest_buffer: u32,
}

impl Credit {
    /// Takes note of the guest's window, which every packet of a connection carries.
    pub(super) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.guest_buffer = buf_alloc;
        self.guest_forwarded = fwd_cnt;
    }

    /// Bytes that may go to the guest now.
    pub(super) fn available(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(in_flight)
    }

    /// `length` bytes went to the guest.
    pub(super) fn send(&mut self, length: u32) {
        self.sent = self.sent.wrapping_add(length);
    }

    /// `length` bytes came from the guest.
    pub(super) fn receive(&mut self, length: u32) -> Result<(), CreditOverrun> {
        let in_flight = self.received.wrapping_sub(self.forwarded);
        if length > BUFFER_BYTES.saturating_sub(in_flight) {
            return Err(CreditOverrun { length, in_flight });
        }
        self.received = self.received.wrapping_add(length);
        Ok(())
    }

    /// `length` of the received bytes left our buffer.
    pub(super) fn forward(&mut self, length: u32) {
        self.forwarded = self.forwarded.wrapping_add(length);
    }

    /// Whether it is time for a CREDIT_UPDATE: the guest believes that less than half of the window is free, and it is
    /// wrong by enough to be worth a packet. Nothing in flight is always enough, or the guest would wait for ever.
    pub(super) fn update_due(&self) -> bool {
        let believed = self.received.wrapping_sub(self.announced);
        let news = self.forwarded.wrapping_sub(self.announced);
        let idle = self.forwarded == self.received;
        believed > BUFFER_BYTES / 2 && (news >= BUFFER_BYTES / 8 || (idle && news > 0))
    }

    /// `(buf_alloc, fwd_cnt)` for the header of a packet that is now sent.
    pub(super) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (BUFFER_BYTES, self.forwarded)
    }
}
