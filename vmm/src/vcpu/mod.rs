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
use self::exit::{End, Next};
use crate::bus::Bus;
use crate::clock;
use crate::event_loop::{Mailbox, Message};

/// How long to wait for a kicked thread before it is kicked again.
const KICK_INTERVAL: Duration = Duration::from_micros(500);

/// Exits in which a pausing processor may complete an access.
const PIECES_OF_AN_ACCESS: usize = 1024;

/// What all vCPU threads share.
#[derive(Debug, Clone)]
pub(crate) struct VcpuContext {
    pub(crate) bus: Arc<Bus>,
    pub(crate) counters: Arc<ExitCounters>,
    pub(crate) mailbox: Mailbox,
    /// When the first processor entered the guest.
    pub(crate) kernel_entered: Arc<OnceLock<u64>>,
}

/// All processors: as threads, or standing still. Stopped and joined when dropped.
#[derive(Debug)]
pub(crate) struct VcpuThreads {
    context: VcpuContext,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Stopped>>,
    /// While there are no threads.
    halted: Vec<VcpuFd>,
}

/// What a thread leaves.
#[derive(Debug)]
struct Stopped {
    vcpu: VcpuFd,
    /// Its guest waits for nothing of ours.
    complete: bool,
}

/// Why the processors do not stand still.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PauseError {
    #[error("a processor is in the middle of a long port access: try again")]
    Busy,
    #[error("a processor's thread panicked")]
    Lost,
    #[error("cannot start the processors again")]
    Restart(#[source] io::Error),
}

impl VcpuThreads {
    /// Starts a thread per processor, named "vcpu0" and so on. The guest runs from here on.
    pub(crate) fn start(vcpus: Vec<VcpuFd>, context: VcpuContext) -> io::Result<Self> {
        // The signal only interrupts KVM_RUN; its handler has nothing to do.
        register_signal_handler(kick_signal(), kicked)?;
        let mut started = Self {
            context,
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::with_capacity(vcpus.len()),
            halted: vcpus,
        };
        started.resume()?;
        Ok(started)
    }

    /// Makes all processors stand still, each after an access of its guest and never within one.
    pub(crate) fn pause(&mut self) -> Result<(), PauseError> {
        if self.threads.is_empty() {
            return Ok(());
        }
        let count = self.threads.len();
        let stopped = self.join();
        let complete = stopped.iter().all(|stopped| stopped.complete);
        self.halted = stopped.into_iter().map(|stopped| stopped.vcpu).collect();
        if self.halted.len() < count {
            return Err(PauseError::Lost);
        }
        if !complete {
            self.resume().map_err(PauseError::Restart)?;
            return Err(PauseError::Busy);
        }
        Ok(())
    }

    /// Lets processors go on that stand still.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        self.stop = Arc::new(AtomicBool::new(false));
        for (index, vcpu) in self.halted.drain(..).enumerate() {
            // So that a guest which stood still does not take the time for a processor that hung. It has no such clock before it
            // has booted.
            if let Err(error) = vcpu.kvmclock_ctrl() {
                tracing::debug!(%error, "vcpu{index} is not told that it stood still");
            }
            let (context, stop) = (self.context.clone(), Arc::clone(&self.stop));
            let body = move || run(vcpu, index, &context, &stop);
            self.threads
                .push(Builder::new().name(format!("vcpu{index}")).spawn(body)?);
        }
        Ok(())
    }

    /// All processors, in order, while they stand still.
    pub(crate) fn halted(&self) -> Option<&[VcpuFd]> {
        self.threads.is_empty().then_some(self.halted.as_slice())
    }

    /// Ends all threads.
    pub(crate) fn stop(&mut self) {
        drop(self.join());
        self.halted.clear();
    }

    fn join(&mut self) -> Vec<Stopped> {
        self.stop.store(true, Ordering::Release);
        let mut all = Vec::with_capacity(self.threads.len());
        for thread in self.threads.drain(..) {
            // A kick that arrives between the thread's look at the flag and KVM_RUN is lost, so it is repeated; the
            // alternative, `immediate_exit` set by the signal handler, needs a pointer shared with the handler.
            while !thread.is_finished() {
                if thread.kill(kick_signal()).is_err() {
                    break;
                }
                std::thread::sleep(KICK_INTERVAL);
            }
            match thread.join() {
                Ok(stopped) => all.push(stopped),
                Err(_) => tracing::error!("a processor's thread panicked"),
            }
        }
        all
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

fn run(mut vcpu: VcpuFd, index: usize, context: &VcpuContext, stop: &AtomicBool) -> Stopped {
    if index == 0 {
        // Set once, here only.
        context.kernel_entered.get_or_init(clock::monotonic_ns);
    }
    while !stop.load(Ordering::Acquire) {
        match exit::run_once(&mut vcpu, context) {
            Next::Continue | Next::Interrupted => {}
            Next::End(end) => return ended(vcpu, index, context, end),
        }
    }
    complete_access(vcpu, index, context)
}

/// Finishes what the guest left KVM for, without letting it run on (Linux, Documentation/virt/kvm/api.rst, KVM_RUN: a port or
/// memory access is complete only when KVM is entered again). A guest can make that take long, by string instructions.
fn complete_access(mut vcpu: VcpuFd, index: usize, context: &VcpuContext) -> Stopped {
    let mut complete = false;
    vcpu.set_kvm_immediate_exit(1);
    for _ in 0..PIECES_OF_AN_ACCESS {
        match exit::run_once(&mut vcpu, context) {
            Next::Continue => {}
            Next::Interrupted => {
                complete = true;
                break;
            }
            Next::End(end) => return ended(vcpu, index, context, end),
        }
    }
    vcpu.set_kvm_immediate_exit(0);
    Stopped { vcpu, complete }
}

fn ended(mut vcpu: VcpuFd, index: usize, context: &VcpuContext, end: End) -> Stopped {
    let end = exit::explain(end, &mut vcpu, index);
    context.mailbox.send(Message::GuestEnded(end));
    Stopped {
        vcpu,
        complete: false,
    }
}
