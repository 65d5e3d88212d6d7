//! A stage on its way into the pod's user namespace. It builds the container's world with the rights of the guest, but makes
//! files as the root of the namespace, and enters when the world is complete: what the world is made of cannot be undone
//! from inside.

use std::os::fd::BorrowedFd;

use proto::agent::v1::ErrorCode;
use rustix::thread::{
    Gid, ThreadNameSpaceType, Uid, move_into_thread_name_spaces, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::error::{Context as _, Failure};
use crate::init::order::{Credentials, IdMap};
use crate::sys;

/// The namespace that a stage is going to enter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Namespace<'a> {
    pub(crate) map: IdMap,
    /// The namespace, or a pidfd of a process in it.
    pub(crate) descriptor: BorrowedFd<'a>,
}

impl Namespace<'_> {
    /// From now on what the stage makes belongs to the namespace's root.
    ///
    /// # Errors
    /// `System`.
    pub(crate) fn own_files(&self) -> Result<(), Failure> {
        let (uid, gid) = (self.map.uids.outside, self.map.gids.outside);
        sys::user_namespace::own_files_as(uid, gid).context(ErrorCode::System, || {
            format!("make files as user {uid} and group {gid}")
        })
    }

    /// Enters as its root, with all rights over what the namespace owns.
    ///
    /// # Errors
    /// `System`.
    pub(crate) fn enter(&self) -> Result<(), Failure> {
        let enter = || -> rustix::io::Result<()> {
            move_into_thread_name_spaces(self.descriptor, ThreadNameSpaceType::USER)?;
            let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
            set_thread_groups(&[])?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)
        };
        enter().context(ErrorCode::System, || "enter the pod's user namespace".to_owned())
    }
}

/// Who owns the standard streams of `user`, as seen by a stage that has not entered yet.
///
/// # Errors
/// `InvalidArgument` when the namespace has no such user, or not all of its groups.
pub(crate) fn owner(user: &Credentials, map: Option<IdMap>) -> Result<u32, Failure> {
    let Some(map) = map else { return Ok(user.uid) };
    let mut gids = [user.gid]
        .into_iter()
        .chain(user.supplemental_gids.iter().copied());
    if let Some(gid) = gids.find(|gid| map.gids.outside(*gid).is_none()) {
        let text = format!("process.user: group {gid} is not mapped in the pod's user namespace");
        return Err(Failure::invalid(text));
    }
    map.uids.outside(user.uid).ok_or_else(|| {
        let text = format!(
            "process.user: user {} is not mapped in the pod's user namespace",
            user.uid
        );
        Failure::invalid(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::order::IdRange;

    #[test]
    fn a_user_is_looked_up_outside_and_refused_when_it_is_not_mapped() {
        let range = IdRange {
            outside: 1000,
            length: 100,
        };
        let map = Some(IdMap {
            uids: range,
            gids: range,
        });
        let user = |uid, supplemental| Credentials {
            uid,
            gid: 1,
            supplemental_gids: vec![supplemental],
        };
        assert_eq!(owner(&user(7, 99), map), Ok(1007));
        assert_eq!(owner(&user(7, 100), None), Ok(7));
        for (user, what) in [(user(100, 1), "user 100"), (user(1, 100), "group 100")] {
            let failure = owner(&user, map).unwrap_err();
            assert!(failure.to_string().contains(what), "{failure}");
        }
    }
}
