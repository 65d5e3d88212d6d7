//! Port writes that KVM collects instead of leaving the guest for each (Linux, Documentation/virt/kvm/api.rst,
//! KVM_REGISTER_COALESCED_MMIO with `pio`): made for address registers such as 0xCF8, where a write has no effect until
//! the data register is used. Halves the exits of a PCI enumeration.

#![expect(unsafe_code, reason = "a ring in a page shared with the kernel")]

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::VcpuFd;

const PAGE: usize = 4096;
/// `KVM_COALESCED_MMIO_MAX` of linux/kvm.h.
const ENTRIES: u32 = ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

/// The ring of one virtual machine. There is one, whichever processor's descriptor it was mapped through; so it has one
/// reader, who holds it exclusively.
#[derive(Debug)]
pub(crate) struct CoalescedWrites {
    page: NonNull<kvm_coalesced_mmio_ring>,
}

// SAFETY: the page is bound to no thread; access needs `&mut self`.
unsafe impl Send for CoalescedWrites {}

impl CoalescedWrites {
    /// Maps the ring through any processor's descriptor.
    pub(crate) fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let offset = i64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE as i64;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, prot, flags, vcpu.as_raw_fd(), offset) };
        match NonNull::new(page) {
            Some(page) if page.as_ptr() != libc::MAP_FAILED => Ok(Self { page: page.cast() }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes the oldest write: port, bytes and how many of them.
    pub(crate) fn next(&mut self) -> Option<(u16, [u8; 8], usize)> {
        let page = self.page.as_ptr();
        let first = page
            .wrapping_byte_add(offset_of!(kvm_coalesced_mmio_ring, first))
            .cast();
        let last = page
            .wrapping_byte_add(offset_of!(kvm_coalesced_mmio_ring, last))
            .cast();
        // SAFETY: the field is aligned and mapped as long as `self`, and both sides access it atomically (the kernel with
        // READ_ONCE and WRITE_ONCE).
        let first = unsafe { AtomicU32::from_ptr(first) };
        // SAFETY: as above.
        let last = unsafe { AtomicU32::from_ptr(last) };
        let at = first.load(Ordering::Relaxed);
        // Acquire: the kernel writes the entry, then `last`.
        if at == last.load(Ordering::Acquire) || at >= ENTRIES {
            return None;
        }
        let entries = page.wrapping_byte_add(size_of::<kvm_coalesced_mmio_ring>());
        let entry = entries.cast::<kvm_coalesced_mmio>().wrapping_add(at as usize);
        // SAFETY: the entries follow the ring's head in the same page, and `at` is below their number; the kernel has
        // written this one and does not touch it before `first` moves on.
        let entry = unsafe { entry.read_volatile() };
        // Release: the entry has been read.
        first.store((at + 1) % ENTRIES, Ordering::Release);
        Some((
            entry.phys_addr as u16,
            entry.data,
            (entry.len as usize).min(entry.data.len()),
        ))
    }
}

impl Drop for CoalescedWrites {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `map`, and nobody else has its address.
        let result = unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE) };
        debug_assert_eq!(result, 0);
    }
}
