//! A fake process: runs its script, takes signals, keeps its output, ends once.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use proto::{agent::v1, stdio::Stream};
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, watch};

use super::{
    lock,
    output::OutputBuffer,
    script::{Step, Target, Trap},
};

/// A process that was created, runs or has ended.
#[derive(Debug)]
pub(super) struct FakeProcess {
    pub(super) output: OutputBuffer,
    pub(super) wants_stdin: bool,
    steps: Vec<Step>,
    environment: Vec<u8>,
    state: watch::Sender<State>,
    traps: Mutex<HashMap<i32, Trap>>,
    termination_log: Mutex<Vec<u8>>,
    /// Signals that were sent, in order.
    signals: Mutex<Vec<i32>>,
    signalled: Notify,
    stdin: AsyncMutex<Option<mpsc::Receiver<Vec<u8>>>>,
    /// Of a stdin that outlives its connections.
    kept: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
    /// Sizes that the terminal was given, in order.
    sizes: Mutex<Vec<(u32, u32)>>,
}

#[derive(Debug, Clone)]
pub(super) enum State {
    Created,
    Running { started_at_ns: u64 },
    Exited { started_at_ns: u64, exit: v1::Exit },
}

/// How a script came to its end.
#[derive(Clone, Copy)]
enum End {
    Code(i32),
    Killed { signal: i32, oom: bool },
}

impl FakeProcess {
    pub(super) fn new(steps: Vec<Step>, process: &v1::Process) -> Self {
        let lines = process
            .env
            .iter()
            .flat_map(|entry| [entry.as_slice(), b"\n"].concat());
        let sizes = process.terminal_size.map(|size| (size.width, size.height));
        Self {
            output: OutputBuffer::default(),
            wants_stdin: process.stdin,
            steps,
            environment: lines.collect(),
            state: watch::Sender::new(State::Created),
            traps: Mutex::default(),
            termination_log: Mutex::default(),
            signals: Mutex::default(),
            signalled: Notify::new(),
            stdin: AsyncMutex::new(None),
            kept: Mutex::default(),
            sizes: Mutex::new(sizes.into_iter().collect()),
        }
    }

    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(super) fn signals(&self) -> Vec<i32> {
        lock(&self.signals).clone()
    }

    /// Returns the end when it has come.
    pub(super) async fn ended(&self) -> v1::Exit {
        let mut state = self.state.subscribe();
        loop {
            if let State::Exited { exit, .. } = &*state.borrow_and_update() {
                return exit.clone();
            }
            // The sender is in `self`.
            if state.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Takes a signal; whether the process was there to take it.
    pub(super) fn signal(&self, signal: i32) -> bool {
        if matches!(self.state(), State::Exited { .. }) {
            return false;
        }
        lock(&self.signals).push(signal);
        self.signalled.notify_one();
        true
    }

    /// Bytes that come over a stdin connection.
    pub(super) async fn connect_stdin(&self, kept: bool) -> mpsc::Sender<Vec<u8>> {
        let open = if kept {
            lock(&self.kept).clone()
        } else {
            lock(&self.kept).take()
        };
        if let Some(sender) = open {
            return sender;
        }
        let (sender, receiver) = mpsc::channel(1);
        *lock(&self.kept) = kept.then(|| sender.clone());
        *self.stdin.lock().await = Some(receiver);
        self.signalled.notify_one();
        sender
    }

    pub(super) fn resize(&self, width: u32, height: u32) {
        lock(&self.sizes).push((width, height));
    }

    pub(super) fn sizes(&self) -> Vec<(u32, u32)> {
        lock(&self.sizes).clone()
    }

    /// When it began to run; once.
    pub(super) fn begin(&self) -> u64 {
        let started_at_ns = now_ns();
        self.state.send_replace(State::Running { started_at_ns });
        started_at_ns
    }

    /// Runs to the end, which is returned.
    pub(super) async fn run(self: Arc<Self>) -> v1::Exit {
        let end = {
            let script = self.script(&self.steps);
            tokio::pin!(script);
            let mut seen = 0;
            loop {
                // Before anything is awaited: a created process may have been signalled.
                if let Some(end) = self.take_signals(&mut seen) {
                    break end;
                }
                tokio::select! {
                    result = &mut script => break result.map_or_else(|end| end, End::Code),
                    () = self.signalled.notified() => {}
                }
            }
        };
        self.finish(end)
    }

    /// Ends a process that never ran or is forgotten.
    pub(super) fn kill(&self) -> v1::Exit {
        self.finish(End::Killed {
            signal: libc::SIGKILL,
            oom: false,
        })
    }

    fn finish(&self, end: End) -> v1::Exit {
        let (code, signal, oom_killed) = match end {
            End::Code(code) => (code, 0, false),
            End::Killed { signal, oom } => (128 + signal, signal, oom),
        };
        let exit = v1::Exit {
            code,
            signal,
            oom_killed,
            finished_at_ns: now_ns(),
            termination_message: lock(&self.termination_log).clone(),
        };
        let mut result = exit.clone();
        self.state.send_modify(|state| match state {
            State::Exited { exit, .. } => result = exit.clone(),
            State::Running { started_at_ns } => {
                *state = State::Exited {
                    started_at_ns: *started_at_ns,
                    exit,
                }
            }
            State::Created => {
                *state = State::Exited {
                    started_at_ns: 0,
                    exit,
                }
            }
        });
        self.output.end();
        result
    }

    fn take_signals(&self, seen: &mut usize) -> Option<End> {
        let signals = self.signals();
        let new = signals.get(*seen..).unwrap_or_default().to_vec();
        *seen = signals.len();
        for signal in new {
            let trap = lock(&self.traps).get(&signal).copied();
            match trap {
                _ if signal == libc::SIGKILL => return Some(End::Killed { signal, oom: false }),
                _ if matches!(signal, 0 | libc::SIGCHLD | libc::SIGWINCH | libc::SIGCONT) => {}
                Some(Trap::Ignore) => {}
                Some(Trap::Exit(code)) => return Some(End::Code(code)),
                None => return Some(End::Killed { signal, oom: false }),
            }
        }
        None
    }

    /// The exit status of the last step, or an end before that.
    fn script<'s>(
        &'s self,
        steps: &'s [Step],
    ) -> Pin<Box<dyn Future<Output = Result<i32, End>> + Send + 's>> {
        Box::pin(async move {
            let mut status = 0;
            for step in steps {
                status = self.step(step).await?;
            }
            Ok(status)
        })
    }

    async fn step(&self, step: &Step) -> Result<i32, End> {
        match step {
            Step::Print { text, to } => match to {
                Target::Stdout => self.output.write(Stream::Stdout, text).await,
                Target::Stderr => self.output.write(Stream::Stderr, text).await,
                Target::TerminationLog => lock(&self.termination_log).extend_from_slice(text),
            },
            Step::Environment => self.output.write(Stream::Stdout, &self.environment).await,
            Step::Sleep(duration) => tokio::time::sleep(*duration).await,
            Step::Cat => self.cat().await,
            Step::Flood(bytes) => self.flood(*bytes).await,
            Step::Trap { signal, then } => {
                lock(&self.traps).insert(*signal, *then);
            }
            Step::Status(status) => return Ok(*status),
            Step::Exit(code) => return Err(End::Code(*code)),
            Step::Killed { signal, oom } => {
                return Err(End::Killed {
                    signal: *signal,
                    oom: *oom,
                });
            }
            Step::Forever(steps) => loop {
                self.script(steps).await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            },
        }
        Ok(0)
    }

    /// Copies stdin to stdout until its end; without a stdin that is at once.
    async fn cat(&self) {
        if !self.wants_stdin {
            return;
        }
        loop {
            let mut stdin = self.stdin.lock().await;
            let received = match stdin.as_mut() {
                Some(receiver) => receiver.recv().await,
                None => {
                    drop(stdin);
                    // Nobody is connected yet.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    continue;
                }
            };
            drop(stdin);
            match received {
                Some(bytes) => self.output.write(Stream::Stdout, &bytes).await,
                None => return,
            }
        }
    }

    /// Numbered lines to stdout, cut off at `bytes`; every seventh goes to stderr and does not count.
    async fn flood(&self, bytes: usize) {
        let (mut written, mut number) = (0, 0_u64);
        while written < bytes {
            let line = format!("line {number}\n");
            if number.is_multiple_of(7) {
                self.output.write(Stream::Stderr, line.as_bytes()).await;
            }
            let take = line.len().min(bytes - written);
            self.output
                .write(Stream::Stdout, line.as_bytes().get(..take).unwrap_or_default())
                .await;
            written += take;
            number += 1;
        }
    }
}

fn now_ns() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}
