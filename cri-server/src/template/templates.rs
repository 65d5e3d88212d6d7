//! The templates of this node as everybody sees them: who starts a pod asks for one, the keeper puts them in.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

use super::{
    TemplatesConfig,
    key::{Contents, Origin, Parts, Shape},
    pages::Pages,
    rules::{Book, Next, Status},
    shelf::Stored,
};
use crate::config::MachineDefaults;

/// Forks in a row that did not answer before a template is taken for broken.
const BROKEN_AFTER: u32 = 3;

/// One of them.
#[derive(Debug)]
pub(super) struct Template {
    origin: Origin,
    stored: Stored,
    forks: AtomicU64,
    /// That did not answer, since the last that did.
    failures: AtomicU32,
    pages: Pages,
}

/// Somebody goes on from a template: its files stay until this is dropped.
#[derive(Debug)]
pub(crate) struct Fork {
    shape: Shape,
    template: Arc<Template>,
}

/// What became of a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its guest goes on.
    Answers,
    /// The VMM would not go on from it, and never will.
    Refused,
    /// It ended, or did not answer.
    Failed,
}

/// One shape's, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TemplateView {
    /// Absent until the kernel is read.
    pub(crate) origin: Option<String>,
    #[serde(flatten)]
    pub(crate) shape: Shape,
    pub(crate) state: String,
    /// Why it failed.
    pub(crate) why: Option<String>,
    pub(crate) files: Option<Files>,
}

/// Of one that is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Files {
    pub(crate) length_bytes: u64,
    pub(crate) allocated_bytes: u64,
    /// Nanoseconds since the epoch.
    pub(crate) made_at: i64,
    pub(crate) took_ms: u64,
    /// By this daemon.
    pub(crate) forks: u64,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Templates {
    enabled: bool,
    inner: Mutex<Inner>,
    /// Something is to be made, or looked at again.
    wanted: Notify,
}

#[derive(Debug)]
struct Inner {
    book: Book<Arc<Template>>,
    made_of: Option<(Parts, Contents)>,
}

impl Templates {
    /// `always` is the shape that has a template whether pods of it have come or not.
    pub(crate) fn new(config: &TemplatesConfig, always: Shape) -> Self {
        let mut book = Book::new(config.most);
        if config.enabled {
            book.pin(always, Instant::now());
        }
        Self {
            enabled: config.enabled,
            inner: Mutex::new(Inner { book, made_of: None }),
            wanted: Notify::new(),
        }
    }

    /// A pod of that shape starts. `None`: it boots cold, and perhaps the next one of its shape need not.
    pub(crate) fn fork(&self, shape: Shape, machine: &MachineDefaults) -> Option<Fork> {
        if !self.enabled {
            return None;
        }
        let parts = Parts::look(machine).ok();
        let mut inner = self.lock();
        let Inner { book, made_of } = &mut *inner;
        let template = book.ask(shape, Instant::now()).cloned();
        let unchanged = made_of.as_ref().map(|(parts, _)| parts) == parts.as_ref();
        let fork = template.filter(|_| unchanged).and_then(|template| {
            if !template.stored.is_untouched() {
                book.is_spoilt(shape, &template, "its files were changed by somebody else");
                return None;
            }
            template.forks.fetch_add(1, Ordering::Relaxed);
            Some(Fork { shape, template })
        });
        if fork.is_none() {
            self.wanted.notify_one();
        }
        fork
    }

    /// What became of it. A template that is no good is made again.
    pub(crate) fn tell(&self, fork: &Fork, outcome: Outcome) {
        let template = &fork.template;
        let failures = match outcome {
            Outcome::Answers => return template.failures.store(0, Ordering::Relaxed),
            Outcome::Refused => BROKEN_AFTER,
            Outcome::Failed => template.failures.fetch_add(1, Ordering::Relaxed) + 1,
        };
        if failures < BROKEN_AFTER {
            return;
        }
        let mut inner = self.lock();
        let is_current = inner
            .book
            .ready()
            .any(|(_, current)| Arc::ptr_eq(current, template));
        if is_current {
            inner.book.is_spoilt(
                fork.shape,
                template,
                &format!("forks of it did not go on: {outcome:?}"),
            );
            self.wanted.notify_one();
        }
    }

    /// Ordered by shape.
    pub(crate) fn list(&self) -> Vec<TemplateView> {
        let inner = self.lock();
        let contents = inner.made_of.as_ref().map(|(_, contents)| contents);
        let views = inner.book.entries().map(|(shape, status)| {
            let (state, why, template) = match status {
                Status::Wanted => ("wanted", None, None),
                Status::Making => ("being made", None, None),
                Status::Ready(template) => ("ready", None, Some(template)),
                Status::Failed { why, .. } => ("failed", Some(why.clone()), None),
            };
            TemplateView {
                origin: contents.map(|contents| contents.origin(*shape).as_str().to_owned()),
                shape: *shape,
                state: state.to_owned(),
                why,
                files: template.map(|template| template.files()),
            }
        });
        views.collect()
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Ends when somebody wanted something since the last call.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    pub(super) fn is_made_of(&self, parts: &Parts) -> bool {
        self.lock()
            .made_of
            .as_ref()
            .is_some_and(|(known, _)| known == parts)
    }

    /// Guests are made of this from now on; `found` is on the shelf already.
    pub(super) fn renew(&self, parts: Parts, contents: Contents, found: Vec<Stored>) {
        let mut inner = self.lock();
        inner.book.renew();
        for stored in found {
            let shape = stored.about.shape;
            let template = Template::new(contents.origin(shape), stored);
            inner.book.adopt(shape, template, Instant::now());
        }
        inner.made_of = Some((parts, contents));
    }

    pub(super) fn next(&self) -> Next {
        self.lock().book.next(Instant::now())
    }

    /// It is being made from now on, by that name; `None`: nobody knows yet of what.
    pub(super) fn begin(&self, shape: Shape) -> Option<Origin> {
        let mut inner = self.lock();
        let origin = inner.made_of.as_ref()?.1.origin(shape);
        inner.book.making(shape);
        Some(origin)
    }

    pub(super) fn made(&self, origin: Origin, stored: Stored) {
        let shape = stored.about.shape;
        self.lock().book.made(shape, Template::new(origin, stored));
    }

    pub(super) fn failed(&self, shape: Shape, why: String) {
        self.lock().book.failed(shape, why, Instant::now());
    }

    /// The names of those that are ready.
    pub(super) fn in_use(&self) -> BTreeSet<Origin> {
        let inner = self.lock();
        inner
            .book
            .ready()
            .map(|(_, template)| template.origin.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that can panic is done with it held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book<Arc<Template>> {
    fn is_spoilt(&mut self, shape: Shape, template: &Template, why: &str) {
        tracing::warn!(
            template = template.origin.as_str(),
            why,
            "pods go on from it no more"
        );
        self.spoilt(shape, why.to_owned(), Instant::now());
    }
}

impl Template {
    fn new(origin: Origin, stored: Stored) -> Arc<Self> {
        Arc::new(Self {
            origin,
            stored,
            forks: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            pages: Pages::default(),
        })
    }

    fn files(&self) -> Files {
        let Stored {
            about,
            allocated,
            length,
            ..
        } = &self.stored;
        Files {
            length_bytes: *length,
            allocated_bytes: *allocated,
            made_at: about.made_at,
            took_ms: about.took_ms,
            forks: self.forks.load(Ordering::Relaxed),
        }
    }
}

impl Fork {
    /// What the VMM has to name.
    pub(crate) fn origin(&self) -> &str {
        self.template.origin.as_str()
    }

    /// What its guest will write soon.
    pub(crate) fn pages(&self) -> &Pages {
        &self.template.pages
    }

    /// The files, memory first, each opened anew and for reading only: a VMM that its guest has taken over cannot write them.
    pub(crate) fn open(&self) -> io::Result<[OwnedFd; 2]> {
        let open = |file: &File| {
            // Their names may be gone; this is open(2) of what the descriptor names.
            let again = fs_err::File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
            Ok::<OwnedFd, io::Error>(again.into_parts().0.into())
        };
        Ok([
            open(&self.template.stored.memory)?,
            open(&self.template.stored.state)?,
        ])
    }
}
