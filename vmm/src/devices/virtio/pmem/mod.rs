//! virtio-pmem (virtio 1.2, section 5.19): says where in guest-physical memory a file is mapped.
//!
//! The builder maps the file, padded to 2 MiB, as a read-only KVM memory slot; guest loads reach the host's page cache
//! without this device. What is left here is the address in the configuration, and a queue whose one request, FLUSH, has
//! nothing to make durable because nothing can be written.

mod device;

#[cfg(test)]
mod tests;

pub(crate) use device::Pmem;
