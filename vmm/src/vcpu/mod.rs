//! A virtual processor is a thread: it runs the guest, answers its exits, and ends when told or when the guest does.

mod counters;
mod exit;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

pub(crate) use self::counters::ExitCounters;
use self::exit::Next;
use crate::bus::Bus;
use crate::clock;
use crate::event_loop::{Mailbox, Message};

/// How long to wait for a kicked thread before it is kicked again.
const KICK_INTERVAL: Duration = Duration::from_micros(500);

/// What all vCPU threads share.
#[derive(Debug, Clone)]
pub(crate) struct VcpuContext {
    pub(crate) bus: Arc<Bus>,
    pub(crate) counters: Arc<ExitCounters>,
    pub(crate) mailbox: Mailbox,
    /// When the first processor entered the guest.
    pub(crate) kernel_entered: Arc<OnceLock<u64>>,
}

/// The threads of all processors. Stopped and joined when dropped.
#[derive(Debug)]
pub(crate) struct VcpuThreads {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl VcpuThreads {
    /// Starts a thread per processor, named "vcpu0" and so on. The guest runs from here on.
    pub(crate) fn start(vcpus: Vec<VcpuFd>, context: &VcpuContext) -> io::Result<Self> {
        // The signal only interrupts KVM_RUN; its handler has nothing to do.
        register_signal_handler(kick_signal(), kicked)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut started = Self {
            stop: Arc::clone(&stop),
            threads: Vec::with_capacity(vcpus.len()),
        };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let (context, stop) = (context.clone(), Arc::clone(&stop));
            let body = move || run(vcpu, index, &context, &stop);
            started
                .threads
                .push(Builder::new().name(format!("vcpu{index}")).spawn(body)?);
        }
        Ok(started)
    }

    /// Ends all threads.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A kick that arrives between the thread's look at the flag and KVM_RUN is lost, so it is repeated; the
            // alternative, `immediate_exit` set by the signal handler, needs a pointer shared with the handler.
            while !thread.is_finished() {
                if thread.kill(kick_signal()).is_err() {
                    break;
                }
                std::thread::sleep(KICK_INTERVAL);
            }
            if thread.join().is_err() {
                tracing::error!("a processor's thread panicked");
            }
        }
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn run(mut vcpu: VcpuFd, index: usize, context: &VcpuContext, stop: &AtomicBool) {
    if index == 0 {
        // Set once, here only.
        context.kernel_entered.get_or_init(clock::monotonic_ns);
    }
    while !stop.load(Ordering::Acquire) {
        match exit::run_once(&mut vcpu, context) {
            Next::Continue => {}
            Next::End(end) => {
                let end = exit::explain(end, &mut vcpu, index);
                context.mailbox.send(Message::GuestEnded(end));
                return;
            }
        }
    }
}
