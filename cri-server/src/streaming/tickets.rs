//! What the URLs of Exec, Attach and PortForward stand for: a secret each, good for one use and a minute.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::remote_command::Wanted;
use crate::sandbox::{RequestError, new_id};

/// Tickets at a time. One that is not used is forgotten when it has expired.
const MAX_TICKETS: usize = 1000;

/// What a client may do once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    Exec {
        container_id: String,
        command: Vec<String>,
        wanted: Wanted,
    },
    Attach {
        container_id: String,
        wanted: Wanted,
    },
    PortForward {
        sandbox_id: String,
        /// Only for clients that cannot name ports themselves.
        ports: Vec<u16>,
    },
}

/// The first part of an URL's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Exec,
    Attach,
    PortForward,
}

/// All tickets that were given out and not used.
#[derive(Debug)]
pub(super) struct Tickets {
    lifetime: Duration,
    valid: Mutex<HashMap<String, (Instant, Purpose)>>,
}

impl Purpose {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Exec { .. } => Kind::Exec,
            Self::Attach { .. } => Kind::Attach,
            Self::PortForward { .. } => Kind::PortForward,
        }
    }
}

impl Kind {
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }

    pub(super) fn of_path(path: &str) -> Option<Self> {
        [Self::Exec, Self::Attach, Self::PortForward]
            .into_iter()
            .find(|kind| kind.path() == path)
    }
}

impl Tickets {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self {
            lifetime,
            valid: Mutex::default(),
        }
    }

    /// A secret that stands for `purpose`.
    pub(super) fn issue(&self, purpose: Purpose, now: Instant) -> Result<String, RequestError> {
        // 128 random bits.
        let ticket = new_id()?;
        let mut valid = self.valid.lock().unwrap_or_else(PoisonError::into_inner);
        valid.retain(|_, (since, _)| now.saturating_duration_since(*since) < self.lifetime);
        if valid.len() >= MAX_TICKETS {
            return Err(RequestError::TooMany {
                what: format!(
                    "{MAX_TICKETS} streaming URLs were given out within {} s and are not used",
                    self.lifetime.as_secs()
                ),
            });
        }
        valid.insert(ticket.clone(), (now, purpose));
        Ok(ticket)
    }

    /// What `ticket` stands for, once, in time, and for the kind that it was given out for.
    pub(super) fn redeem(&self, kind: Kind, ticket: &str, now: Instant) -> Option<Purpose> {
        let mut valid = self.valid.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, purpose) = valid.remove(ticket)?;
        let in_time = now.saturating_duration_since(since) < self.lifetime;
        (in_time && purpose.kind() == kind).then_some(purpose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn purpose() -> Purpose {
        Purpose::PortForward {
            sandbox_id: "s".to_owned(),
            ports: Vec::new(),
        }
    }

    #[test]
    fn a_ticket_is_good_once() {
        let tickets = Tickets::new(MINUTE);
        let now = Instant::now();
        let ticket = tickets.issue(purpose(), now).unwrap();
        assert!(ticket.len() >= 32);
        assert_ne!(tickets.issue(purpose(), now).unwrap(), ticket);
        assert_eq!(tickets.redeem(Kind::PortForward, &ticket, now), Some(purpose()));
        assert_eq!(tickets.redeem(Kind::PortForward, &ticket, now), None);
    }

    #[test]
    fn a_ticket_is_good_for_its_lifetime_and_its_kind() {
        let tickets = Tickets::new(MINUTE);
        let now = Instant::now();
        let issue = || tickets.issue(purpose(), now).unwrap();
        let redeem = |ticket: &str, kind, at| tickets.redeem(kind, ticket, at).is_some();
        assert!(redeem(
            &issue(),
            Kind::PortForward,
            now + MINUTE - Duration::from_secs(1)
        ));
        assert!(!redeem(&issue(), Kind::PortForward, now + MINUTE));
        assert!(!redeem(&issue(), Kind::Exec, now));
        assert!(!redeem("", Kind::PortForward, now));
    }

    #[test]
    fn there_are_so_many_and_expired_ones_make_room() {
        let tickets = Tickets::new(MINUTE);
        let now = Instant::now();
        for _ in 0..MAX_TICKETS {
            tickets.issue(purpose(), now).unwrap();
        }
        let refused = tickets.issue(purpose(), now).unwrap_err();
        assert!(matches!(refused, RequestError::TooMany { .. }), "{refused:?}");
        tickets.issue(purpose(), now + MINUTE).unwrap();
    }
}
