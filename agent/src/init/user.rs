//! Who a process runs as: a user specification resolved against the container's own /etc/passwd and /etc/group.
//!
//! Both files are written by whoever made the image, so they are read up to a limit, as bytes, and lines that make no
//! sense are passed over, as getpwent(3) would. No NSS: what a container knows of users is what these files say.

use std::io::{self, Read as _};
use std::os::fd::BorrowedFd;

use proto::agent::v1::ErrorCode;
use rustix::fs::{FileType, OFlags};

use crate::error::{Context as _, Failure};
use crate::init::order::{Credentials, UserSpec};
use crate::init::paths;

/// Longest /etc/passwd or /etc/group that is read; beyond it the rest is not looked at.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// NGROUPS_MAX of Linux.
const MAX_GROUPS: usize = 65_536;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) credentials: Credentials,
    /// For `HOME` when the environment has none.
    pub(crate) home: Vec<u8>,
}

/// The two files of a container; empty when they do not exist.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

impl Accounts {
    /// Reads them below `root`.
    ///
    /// # Errors
    /// [`ErrorCode::System`] when one exists and cannot be read.
    pub(crate) fn read(root: BorrowedFd<'_>) -> Result<Self, Failure> {
        let file = |path: &str| {
            read_limited(root, path).context(ErrorCode::System, || format!("read the container's {path}"))
        };
        Ok(Self {
            passwd: file("/etc/passwd")?,
            group: file("/etc/group")?,
        })
    }

    fn users(&self) -> impl Iterator<Item = User<'_>> {
        self.passwd.split(|byte| *byte == b'\n').filter_map(User::parse)
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.split(|byte| *byte == b'\n').filter_map(Group::parse)
    }
}

fn read_limited(root: BorrowedFd<'_>, path: &str) -> io::Result<Vec<u8>> {
    // Non-blocking, so that a FIFO in the file's place does not hold up the stage; it is then refused below.
    let file = match paths::open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(file) => file,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A line of passwd(5).
#[derive(Debug, Clone, Copy)]
struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl<'a> User<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Self { name, uid, gid, home })
    }
}

/// A line of group(5).
#[derive(Debug, Clone, Copy)]
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl<'a> Group<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = number(fields.nth(1)?)?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    }

    fn has_member(&self, user: &[u8]) -> bool {
        self.members
            .split(|byte| *byte == b',')
            .any(|member| member == user)
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // The highest number means "no change" to setresuid(2).
    std::str::from_utf8(digits)
        .ok()?
        .parse()
        .ok()
        .filter(|id| *id != u32::MAX)
}

/// Resolves `user`. Numbers need no entry in the files, names do.
///
/// # Errors
/// [`ErrorCode::UserNotFound`] for a name that is not in the files.
pub(crate) fn resolve(user: &UserSpec, accounts: &Accounts) -> Result<Resolved, Failure> {
    let (name, group) = match user.spec.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user.spec.as_str(), None),
    };
    let (uid, entry) = find_user(name, accounts)?;
    let gid = match (user.gid, group) {
        (Some(gid), _) => gid,
        (None, Some(group)) => find_group(group, accounts)?,
        (None, None) => entry.map_or(0, |entry| entry.gid),
    };
    let mut supplemental_gids = vec![gid];
    if let (Some(entry), false) = (entry, user.strict_groups) {
        let memberships = accounts.groups().filter(|group| group.has_member(entry.name));
        supplemental_gids.extend(memberships.map(|group| group.gid));
    }
    supplemental_gids.extend(&user.supplemental_gids);
    let mut seen = std::collections::HashSet::new();
    supplemental_gids.retain(|gid| seen.insert(*gid));
    supplemental_gids.truncate(MAX_GROUPS);
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty())
        .unwrap_or(b"/");
    Ok(Resolved {
        credentials: Credentials {
            uid,
            gid,
            supplemental_gids,
        },
        home: home.to_vec(),
    })
}

fn find_user<'a>(name: &str, accounts: &'a Accounts) -> Result<(u32, Option<User<'a>>), Failure> {
    let name = if name.is_empty() { "0" } else { name };
    if let Some(uid) = number(name.as_bytes()) {
        return Ok((uid, accounts.users().find(|user| user.uid == uid)));
    }
    match accounts.users().find(|user| user.name == name.as_bytes()) {
        Some(user) => Ok((user.uid, Some(user))),
        None => Err(Failure::new(
            ErrorCode::UserNotFound,
            format!("user {name:?} is not in the container's /etc/passwd"),
        )),
    }
}

fn find_group(name: &str, accounts: &Accounts) -> Result<u32, Failure> {
    if let Some(gid) = number(name.as_bytes()) {
        return Ok(gid);
    }
    let group = accounts.groups().find(|group| group.name == name.as_bytes());
    group.map(|group| group.gid).ok_or_else(|| {
        Failure::new(
            ErrorCode::UserNotFound,
            format!("group {name:?} is not in the container's /etc/group"),
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\nbroken\nalso:x:notanumber:1::/:\n\
        www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\nodd\xff:x:44:44::/odd:\nhomeless:x:45:46:::\n";
    const GROUP: &[u8] =
        b"root:x:0:\nwww-data:x:33:\nextra:x:500:www-data,root\nmore:x:501:someone,www-data\nbad:x\n";

    fn accounts() -> Accounts {
        Accounts {
            passwd: PASSWD.to_vec(),
            group: GROUP.to_vec(),
        }
    }

    fn resolved(spec: &str) -> Resolved {
        let user = UserSpec {
            spec: spec.to_owned(),
            ..UserSpec::default()
        };
        resolve(&user, &accounts()).unwrap()
    }

    fn ids(spec: &str) -> (u32, u32, Vec<u32>) {
        let Credentials {
            uid,
            gid,
            supplemental_gids,
        } = resolved(spec).credentials;
        (uid, gid, supplemental_gids)
    }

    #[test]
    fn every_form_of_a_specification() {
        assert_eq!(ids(""), (0, 0, vec![0, 500]));
        assert_eq!(ids("root"), (0, 0, vec![0, 500]));
        assert_eq!(ids("www-data"), (33, 33, vec![33, 500, 501]));
        assert_eq!(ids("33"), (33, 33, vec![33, 500, 501]));
        assert_eq!(ids("33:0"), (33, 0, vec![0, 500, 501]));
        assert_eq!(ids("www-data:extra"), (33, 500, vec![500, 501]));
        assert_eq!(ids("1000"), (1000, 0, vec![0]));
        assert_eq!(ids("1000:1001"), (1000, 1001, vec![1001]));
        assert_eq!(ids("1000:"), (1000, 0, vec![0]));
    }

    #[test]
    fn the_request_overrides_the_group_and_adds_to_the_rest() {
        let mut user = UserSpec {
            spec: "www-data".to_owned(),
            gid: Some(7),
            supplemental_gids: vec![8, 501, 7],
            strict_groups: false,
        };
        assert_eq!(
            resolve(&user, &accounts()).unwrap().credentials.supplemental_gids,
            vec![7, 500, 501, 8]
        );
        user.strict_groups = true;
        assert_eq!(
            resolve(&user, &accounts()).unwrap().credentials.supplemental_gids,
            vec![7, 8, 501]
        );
    }

    #[test]
    fn homes_come_from_passwd_and_are_never_empty() {
        assert_eq!(resolved("www-data").home, b"/var/www");
        assert_eq!(resolved("1000").home, b"/");
        assert_eq!(resolved("homeless").home, b"/");
    }

    #[test]
    fn unknown_names_are_named() {
        for (spec, name) in [
            ("nobody", "nobody"),
            ("root:staff", "staff"),
            ("4294967295", "4294967295"),
            ("-1", "-1"),
        ] {
            let user = UserSpec {
                spec: spec.to_owned(),
                ..UserSpec::default()
            };
            let failure = resolve(&user, &accounts()).unwrap_err();
            assert_eq!(failure.code(), ErrorCode::UserNotFound);
            assert!(failure.to_string().contains(name), "{failure}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_resolve_or_are_refused(passwd: Vec<u8>, group: Vec<u8>, spec in "[a-z0-9:]{0,8}") {
            let user = UserSpec { spec, ..UserSpec::default() };
            let accounts = Accounts { passwd, group };
            if let Ok(resolved) = resolve(&user, &accounts) {
                prop_assert_ne!(resolved.credentials.uid, u32::MAX);
                prop_assert!(!resolved.home.is_empty());
            }
        }
    }
}
