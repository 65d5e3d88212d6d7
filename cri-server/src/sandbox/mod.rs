//! CRI sandboxes: one owner task each, which alone changes the sandbox, its containers and its Machine.
//!
//! `state` decides (pure, with the diagram), `driver` is the owner task with one input enum, `start` and `stop` tell the two
//! stories (`awake` is the guest's part of the first), `containers` carries out what is asked of containers (`stop_container` their
//! end), `resize` changes limits (`room` decides, `grow` makes the Machine larger, `oom` says who goes first), `ledger` gives back
//! what a sandbox holds of the host.
//! Others see a sandbox through its `handle` (mailbox) and its `view` (snapshot). `node` is what all sandboxes share, `run`
//! makes a new one, `recover` an old one; `launch` says what a VMM is started with, `make_template` makes what pods go on from
//! (`rehearse` readies its guest).
//! What is kept over a restart is in `crate::store`.

mod awake;
mod begin;
mod containers;
mod driver;
mod error;
mod events;
mod follow;
#[cfg(feature = "testing")]
pub(crate) mod fuzz;
mod grow;
mod handle;
mod launch;
mod ledger;
mod live;
mod make_template;
mod node;
mod oom;
mod plan;
mod quantity;
mod recover;
mod rehearse;
mod resize;
mod room;
mod run;
mod start;
mod start_host;
mod state;
mod stop;
mod stop_container;
mod timings;
mod turns;
mod view;
mod volumes;

pub(crate) use error::{RequestError, chain};
pub(crate) use events::{Event, EventKind, Events};
pub(crate) use handle::{Request, SandboxHandle};
pub(crate) use make_template::make_template;
pub(crate) use node::{Node, Registry, new_id};
pub(crate) use plan::{COLD_HANDLER, HANDLER, default_shape};
pub(crate) use recover::{recover, remove_orphan};
pub(crate) use run::run;
#[cfg(test)]
pub(crate) use state::Acquired;
pub(crate) use state::SandboxState;
pub(crate) use timings::{Phase, Timings};
pub(crate) use turns::Turns;
pub(crate) use view::{ContainerView, MachineView, SandboxView};
pub(crate) use volumes::VolumeUse;
