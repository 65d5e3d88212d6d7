//! The task that makes templates, one at a time, and throws old ones away. It lives as long as the daemon serves.

use std::{io, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    key::{Contents, Origin, Parts, Shape},
    rules::Next,
    shelf::{self, About, Stored, Unfinished},
};
use crate::{
    clock::now_ns,
    sandbox::{Node, RequestError, chain, make_template},
};

/// Until the parts of guests are looked at again that could not be, or that changed while they were read.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The task's whole life.
pub(crate) async fn keep(node: Arc<Node>) {
    if !node.templates.is_enabled() {
        // Those of a daemon that had them take memory for nothing.
        return sweep(&node).await;
    }
    while !node.stop.is_cancelled() {
        let Some(until) = round(&node).await else {
            continue;
        };
        tokio::select! {
            () = node.stop.cancelled() => {}
            () = node.templates.wanted() => {}
            () = at(until) => {}
        }
    }
}

/// Never, when there is no time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Makes one template at most; until when there is nothing to do, or `None` when there may be more at once.
async fn round(node: &Arc<Node>) -> Option<Option<Instant>> {
    if let Err(error) = catch_up(node).await {
        tracing::warn!(%error, "templates cannot be made of this kernel, initramfs and VMM");
        return Some(Some(Instant::now() + LOOK_AGAIN));
    }
    match node.templates.next() {
        Next::Wait(until) => Some(until),
        Next::Make(shape) => {
            make(node, shape).await;
            None
        }
    }
}

/// Learns of what guests are made now. All that were made of something else go.
async fn catch_up(node: &Arc<Node>) -> io::Result<()> {
    let machine = node.config.machine.clone();
    let known = Arc::clone(node);
    let root = node.config.templates();
    let renewed = blocking(move || {
        let parts = Parts::look(&machine)?;
        if known.templates.is_made_of(&parts) {
            return Ok(None);
        }
        let contents = Contents::read(&machine)?;
        if Parts::look(&machine)? != parts {
            return Err(io::Error::other("they changed while they were read"));
        }
        let found = found(&root, &contents);
        Ok(Some((parts, contents, found)))
    });
    if let Some((parts, contents, found)) = renewed.await? {
        node.templates.renew(parts, contents, found);
        sweep(node).await;
    }
    Ok(())
}

/// What an earlier daemon made of the same.
fn found(root: &std::path::Path, contents: &Contents) -> Vec<Stored> {
    let origins = shelf::list(root).unwrap_or_else(|error| {
        tracing::warn!(%error, "templates of an earlier daemon are not looked for");
        Vec::new()
    });
    let mut found = Vec::new();
    for origin in origins {
        match shelf::load(root, &origin) {
            Ok(Some(stored)) if contents.origin(stored.about.shape) == origin => match stored.is_whole() {
                Ok(true) => found.push(stored),
                Ok(false) => tracing::warn!(
                    template = origin.as_str(),
                    "its memory is not what was written, made anew"
                ),
                Err(error) => tracing::warn!(template = origin.as_str(), %error, "not read, made anew"),
            },
            Ok(_) => {}
            Err(error) => tracing::warn!(template = origin.as_str(), %error, "not read, made anew"),
        }
    }
    found
}

async fn make(node: &Arc<Node>, shape: Shape) {
    let Some(origin) = node.templates.begin(shape) else {
        return;
    };
    match make_and_publish(node, shape, origin.clone()).await {
        Ok(stored) => {
            tracing::info!(
                template = origin.as_str(),
                took_ms = stored.about.took_ms,
                bytes = stored.allocated,
                "pods go on from a template of {} MiB and {} processors",
                shape.memory_mib,
                shape.vcpus
            );
            node.templates.made(origin, stored);
        }
        Err(why) => {
            if !node.stop.is_cancelled() {
                tracing::error!(
                    template = origin.as_str(),
                    why,
                    "not made: pods of {} MiB and {} processors boot cold",
                    shape.memory_mib,
                    shape.vcpus
                );
            }
            node.templates.failed(shape, why);
        }
    }
    // What was begun and came to nothing, and what another made room for.
    sweep(node).await;
}

async fn make_and_publish(node: &Arc<Node>, shape: Shape, origin: Origin) -> Result<Stored, String> {
    let began = Instant::now();
    let (root, name) = (node.config.templates(), origin.clone());
    let begun = blocking(move || shelf::begin(&root, &name)).await;
    let unfinished: Unfinished = begun.map_err(|error| format!("take a place for it: {error}"))?;
    let mut made = make_template(node, shape, origin.as_str(), &unfinished).await;
    if let Err(error @ RequestError::Unrunnable { .. }) = &made {
        tracing::warn!(
            template = origin.as_str(),
            error = chain(error),
            "it is made once more"
        );
        made = make_template(node, shape, origin.as_str(), &unfinished).await;
    }
    made.map_err(|error| chain(&error))?;
    let (root, machine, known) = (
        node.config.templates(),
        node.config.machine.clone(),
        Arc::clone(node),
    );
    let published = blocking(move || {
        // It was made of what these paths named meanwhile.
        if !known.templates.is_made_of(&Parts::look(&machine)?) {
            return Err(io::Error::other("kernel, initramfs or VMM changed meanwhile"));
        }
        let about = About {
            shape,
            made_at: now_ns(),
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            memory: unfinished.memory_digest()?,
        };
        unfinished.publish(&root, &origin, &about)
    });
    published
        .await
        .map_err(|error| format!("put it on the shelf: {error}"))
}

async fn sweep(node: &Arc<Node>) {
    let (root, keep) = (node.config.templates(), node.templates.in_use());
    if let Err(error) = blocking(move || shelf::sweep(&root, &keep)).await {
        tracing::warn!(%error, "old templates are left");
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
        .flatten()
}
