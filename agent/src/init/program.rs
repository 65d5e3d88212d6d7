//! The end of a stage: find the program, become the user, execve.

use std::ffi::CString;
use std::io;

use proto::agent::v1::ErrorCode;
use rustix::fs::Mode;

use crate::error::{Context as _, Failure};
use crate::init::identity;
use crate::init::order::ProcessOrder;
use crate::init::user::Resolved;
use crate::sys;

/// Searched when the environment has no PATH, as runc does.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Becomes the program. Returns only on failure.
///
/// # Errors
/// [`ErrorCode::Exec`] with execve's errno, or what stood in the way before.
pub(crate) fn execute(order: &ProcessOrder, user: &Resolved) -> Result<(), Failure> {
    let argv = c_strings(order.args.iter().map(String::as_bytes), "process.args")?;
    let env = environment(&order.env, &user.home);
    let candidates = candidates(&order.args, &env)?;
    let env = c_strings(env.iter().map(Vec::as_slice), "process.env")?;
    rustix::process::umask(Mode::from_raw_mode(sys::exec::CONTAINER_UMASK));
    // As root first: the user may have no right to a directory on the way. If root has none (a volume of another
    // owner), then as the user.
    let entered = enter(&order.cwd);
    identity::assume(&user.credentials, &order.security)?;
    if entered.is_err() {
        enter(&order.cwd).context(ErrorCode::InvalidArgument, || {
            format!("enter working directory {}", order.cwd)
        })?;
    }
    sys::exec::default_signals();
    sys::exec::close_on_exec_from(3).context(ErrorCode::System, || "mark descriptors".to_owned())?;
    let error = execve_first(&candidates, &argv, &env);
    let program = order.args.first().map_or("", String::as_str);
    Err(Failure::from_io(
        ErrorCode::Exec,
        format!("execute {program}"),
        &error,
    ))
}

/// chdir(2), and a look at where that led: a descriptor leaked into the stage must not become a way out of the root.
fn enter(cwd: &str) -> io::Result<()> {
    rustix::process::chdir(cwd)?;
    let here = rustix::process::getcwd(Vec::new())?;
    if here.to_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ENOENT))
    }
}

/// The paths to try, in order, execvp(3): the name itself if it has a slash, else one per directory of PATH.
fn candidates(args: &[String], env: &[Vec<u8>]) -> Result<Vec<CString>, Failure> {
    let program = args.first().filter(|program| !program.is_empty());
    let program = program.ok_or_else(|| Failure::invalid("process.args is empty"))?;
    if program.contains('/') {
        return c_strings([program.as_bytes()], "process.args");
    }
    let path = env
        .iter()
        .find_map(|entry| entry.strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH);
    let joined = path.split(|byte| *byte == b':').map(|directory| {
        let directory = if directory.is_empty() { b"." } else { directory };
        [directory, b"/", program.as_bytes()].concat()
    });
    let joined: Vec<Vec<u8>> = joined.collect();
    c_strings(joined.iter().map(Vec::as_slice), "PATH")
}

/// Tries each; what is not there or not allowed in one directory may be in the next.
fn execve_first(candidates: &[CString], argv: &[CString], env: &[CString]) -> io::Error {
    let mut denied = None;
    let mut last = io::Error::from_raw_os_error(libc::ENOENT);
    for path in candidates {
        let error = sys::exec::execve(path, argv, env);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG | libc::ELOOP) => last = error,
            // A directory of that name is EACCES as well: execvp(3) goes on, and reports it if nothing better comes.
            Some(libc::EACCES) => denied = Some(error),
            _ => return error,
        }
    }
    denied.unwrap_or(last)
}

/// The environment with HOME, which login(1) would set and an image cannot know.
fn environment(env: &[Vec<u8>], home: &[u8]) -> Vec<Vec<u8>> {
    let mut env = env.to_vec();
    if !env.iter().any(|entry| entry.starts_with(b"HOME=")) {
        env.push([b"HOME=", home].concat());
    }
    env
}

fn c_strings<'a>(strings: impl IntoIterator<Item = &'a [u8]>, field: &str) -> Result<Vec<CString>, Failure> {
    strings
        .into_iter()
        .map(|bytes| {
            CString::new(bytes).map_err(|_| Failure::invalid(format!("{field} contains a NUL byte")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(program: &str, env: &[&[u8]]) -> Vec<String> {
        let env: Vec<Vec<u8>> = env.iter().map(|entry| entry.to_vec()).collect();
        let found = candidates(&[program.to_owned()], &env).unwrap();
        found
            .into_iter()
            .map(|path| path.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_name_without_a_slash_is_looked_for_in_path() {
        assert_eq!(tried("ls", &[b"PATH=/a::/b"]), ["/a/ls", "./ls", "/b/ls"]);
        assert_eq!(tried("./ls", &[b"PATH=/a"]), ["./ls"]);
        assert_eq!(tried("ls", &[])[0], "/usr/local/sbin/ls");
    }

    #[test]
    fn no_program_is_refused() {
        assert!(candidates(&[], &[]).is_err());
        assert!(candidates(&[String::new()], &[]).is_err());
    }

    #[test]
    fn home_is_added_only_when_it_is_missing() {
        assert_eq!(environment(&[], b"/root"), [b"HOME=/root".to_vec()]);
        assert_eq!(environment(&[b"HOME=".to_vec()], b"/root"), [b"HOME=".to_vec()]);
    }

    #[test]
    fn what_is_denied_is_reported_over_what_is_missing() {
        let paths: Vec<CString> = ["/nonexistent/x", "/etc", "/nonexistent/y"]
            .map(|path| CString::new(path).unwrap())
            .to_vec();
        assert_eq!(execve_first(&paths, &[], &[]).raw_os_error(), Some(libc::EACCES));
        assert_eq!(
            execve_first(&paths[..1], &[], &[]).raw_os_error(),
            Some(libc::ENOENT)
        );
    }
}
