//! The thread of an active disk: waits for notifications, serves the queue, ends when told.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use tracing::{debug, error};
use virtio_queue::{QueueOwnedT, QueueT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::super::buffers::Buffers;
use super::super::{ActiveQueue, GuestMemory, Interrupt};
use super::request::{self, Context};

/// For how long answers are gathered before the guest is interrupted, counted from when the first of them was begun.
/// Requests that the page cache answers come in bursts and share an interrupt; one that waited for a disk is told at
/// once.
const GATHER: Duration = Duration::from_micros(100);

/// A running worker. [`Worker::stop`] ends and joins it.
#[derive(Debug)]
pub(super) struct Worker {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

/// What the thread owns.
#[derive(Debug)]
pub(super) struct Duty {
    pub(super) context: Context,
    pub(super) memory: GuestMemory,
    pub(super) queue: ActiveQueue,
    pub(super) interrupt: Arc<dyn Interrupt>,
}

/// The wish that the worker ends: the flag is looked at between requests, the event wakes it.
#[derive(Debug)]
struct Stop {
    flag: AtomicBool,
    event: EventFd,
}

impl Worker {
    /// `name` is cut to the 15 bytes that a thread's name has (pthread_setname_np(3)).
    pub(super) fn start(name: &str, mut duty: Duty) -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let epoll = Epoll::new()?;
        for descriptor in [event.as_raw_fd(), duty.queue.notify.as_raw_fd()] {
            epoll.ctl(
                ControlOperation::Add,
                descriptor,
                EpollEvent::new(EventSet::IN, 0),
            )?;
        }
        let stop = Arc::new(Stop {
            flag: AtomicBool::new(false),
            event,
        });
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name(
                name.chars()
                    .filter(|letter| letter.is_ascii() && *letter != '\0')
                    .take(15)
                    .collect(),
            )
            .spawn(move || duty.run(&epoll, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Waits for the request that is being served, not for those behind it.
    pub(super) fn stop(self) {
        self.stop.flag.store(true, Ordering::Relaxed);
        if let Err(error) = self.stop.event.write(1) {
            // An event that nobody reads takes a second 1; this cannot happen, and without it a join could hang.
            error!(%error, "block: cannot wake the worker; it is left behind");
            return;
        }
        if self.thread.join().is_err() {
            error!("block: the worker has panicked");
        }
    }
}

impl Stop {
    fn is_wanted(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

impl Duty {
    fn run(&mut self, epoll: &Epoll, stop: &Stop) {
        let mut broken = false;
        // Requests may have come before the thread.
        while !stop.is_wanted() {
            if !broken && let Err(error) = self.serve(stop) {
                error!(%error, "block: the driver broke the queue; the disk stops until it is reset");
                broken = true;
            }
            if !wait(epoll) {
                return;
            }
            if let Err(error) = self.queue.notify.read() {
                debug!(%error, "block: woken, but not by a notification");
            }
        }
    }

    /// Serves until the queue is empty or the worker is to stop.
    fn serve(&mut self, stop: &Stop) -> Result<(), virtio_queue::Error> {
        let queue = &mut self.queue.queue;
        // When the first request that the guest was not interrupted for was begun.
        let mut gathering: Option<Instant> = None;
        queue.disable_notification(&self.memory)?;
        while !stop.is_wanted() {
            let begun = Instant::now();
            let Some(chain) = queue.iter(&self.memory)?.next() else {
                if gathering.take().is_some() && queue.needs_notification(&self.memory)? {
                    self.interrupt.signal_queue(0);
                }
                if queue.enable_notification(&self.memory)? {
                    queue.disable_notification(&self.memory)?;
                    continue;
                }
                return Ok(());
            };
            let head = chain.head_index();
            let buffers = Buffers::collect(&self.memory, chain);
            let written = request::serve(&self.context, buffers).unwrap_or_else(|error| {
                debug!(%error, "block: the guest sent no request");
                0
            });
            queue.add_used(&self.memory, head, written)?;
            if gathering.get_or_insert(begun).elapsed() >= GATHER {
                gathering = None;
                if queue.needs_notification(&self.memory)? {
                    self.interrupt.signal_queue(0);
                }
            }
        }
        Ok(())
    }
}

/// Waits for a notification or the wish to stop; false if that is not possible.
fn wait(epoll: &Epoll) -> bool {
    let mut events = [EpollEvent::default(); 2];
    loop {
        match epoll.wait(-1, &mut events) {
            Ok(_) => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                error!(%error, "block: epoll_wait failed; the worker ends");
                return false;
            }
        }
    }
}
