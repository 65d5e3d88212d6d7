//! Command, environment, directory, user and limits of a container's processes.

use std::collections::HashSet;

use nix::sys::signal::Signal;
use proto::{agent::v1 as agent, cri::v1 as cri};

use super::SpecError;
use crate::{config::ContainerDefaults, image::RunConfig};

/// What a shell finds programs in when neither image nor pod says.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// oom_score_adj of proc(5).
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i64> = -1000..=1000;

/// The container's first process.
pub(super) fn init(
    config: &cri::ContainerConfig,
    context: &cri::LinuxContainerSecurityContext,
    image: &RunConfig,
    hostname: &str,
    defaults: &ContainerDefaults,
) -> Result<agent::Process, SpecError> {
    let oom_score_adj = config
        .linux
        .as_ref()
        .and_then(|linux| linux.resources.as_ref())
        .map_or(0, |all| all.oom_score_adj);
    if !OOM_SCORE_ADJ.contains(&oom_score_adj) {
        let problem = format!("{oom_score_adj} is not within -1000 to 1000");
        return Err(SpecError::invalid(
            "config.linux.resources.oom_score_adj",
            problem,
        ));
    }
    let (soft, hard) = defaults.nofile;
    Ok(agent::Process {
        args: args(config, image)?,
        env: env(config, image, hostname)?,
        cwd: cwd(config, image)?,
        user: Some(user(context, image)?),
        terminal: config.tty,
        terminal_size: None,
        stdin: config.stdin,
        rlimits: vec![agent::Rlimit {
            kind: "RLIMIT_NOFILE".to_owned(),
            soft,
            hard,
        }],
        oom_score_adj: i32::try_from(oom_score_adj).unwrap_or_default(),
    })
}

/// One more process of a running container: everything but command and terminal as its first one has it.
pub(crate) fn exec_process(
    init: &agent::Process,
    args: Vec<String>,
    terminal: bool,
    stdin: bool,
) -> agent::Process {
    agent::Process {
        args,
        terminal,
        stdin,
        terminal_size: None,
        ..init.clone()
    }
}

/// As Kubernetes defines it: `command` replaces the image's entrypoint and, when it is set, its cmd too; `args` replaces
/// the image's cmd.
fn args(config: &cri::ContainerConfig, image: &RunConfig) -> Result<Vec<String>, SpecError> {
    let (command, arguments) = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &config.args),
        (false, _) => (&config.command, &config.args),
    };
    let all: Vec<String> = command.iter().chain(arguments).cloned().collect();
    if all.first().is_none_or(String::is_empty) {
        return Err(SpecError::invalid(
            "config.command",
            "no command: neither the image nor the request names one",
        ));
    }
    if all.iter().any(|one| one.contains('\0')) {
        return Err(SpecError::invalid(
            "config.command",
            "an argument has a zero byte",
        ));
    }
    Ok(all)
}

/// The image's environment, then the pod's; a later value of the same name wins and keeps its own place.
fn env(config: &cri::ContainerConfig, image: &RunConfig, hostname: &str) -> Result<Vec<Vec<u8>>, SpecError> {
    let mut all: Vec<Vec<u8>> = vec![DEFAULT_PATH.into(), format!("HOSTNAME={hostname}").into()];
    if config.tty {
        all.push("TERM=xterm".into());
    }
    all.extend(image.env.iter().map(|pair| pair.clone().into_bytes()));
    for (index, pair) in config.envs.iter().enumerate() {
        if pair.key.is_empty() || pair.key.contains(['=', '\0']) {
            return Err(SpecError::invalid(
                format!("config.envs[{index}].key"),
                format!("{:?} is no name", pair.key),
            ));
        }
        if pair.value.contains(&0) {
            return Err(SpecError::invalid(
                format!("config.envs[{index}].value"),
                "has a zero byte",
            ));
        }
        let mut entry = pair.key.clone().into_bytes();
        entry.push(b'=');
        entry.extend(&pair.value);
        all.push(entry);
    }
    let mut seen = HashSet::new();
    let name = |pair: &Vec<u8>| pair.split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    let mut last: Vec<Vec<u8>> = all
        .into_iter()
        .rev()
        .filter(|pair| seen.insert(name(pair)))
        .collect();
    last.reverse();
    Ok(last)
}

fn cwd(config: &cri::ContainerConfig, image: &RunConfig) -> Result<String, SpecError> {
    let chosen = [&config.working_dir, &image.working_dir]
        .into_iter()
        .find(|dir| !dir.is_empty());
    match chosen {
        None => Ok("/".to_owned()),
        Some(dir) if dir.starts_with('/') => Ok(dir.clone()),
        Some(dir) => Err(SpecError::invalid(
            "config.working_dir",
            format!("{dir:?} is not absolute"),
        )),
    }
}

fn user(context: &cri::LinuxContainerSecurityContext, image: &RunConfig) -> Result<agent::User, SpecError> {
    let field = |name: &str| format!("config.linux.security_context.{name}");
    let id = |name: &str, value: i64| {
        u32::try_from(value).map_err(|_| SpecError::invalid(field(name), format!("{value} is no id")))
    };
    let chosen = match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(uid), _) => Some(id("run_as_user", uid.value)?.to_string()),
        (None, "") => None,
        (None, name) => Some(name.to_owned()),
    };
    let gid = context
        .run_as_group
        .as_ref()
        .map(|gid| id("run_as_group", gid.value))
        .transpose()?;
    if gid.is_some() && chosen.is_none() {
        return Err(SpecError::invalid(
            field("run_as_group"),
            "needs run_as_user or run_as_username beside it",
        ));
    }
    let groups = context
        .supplemental_groups
        .iter()
        .map(|gid| id("supplemental_groups", *gid));
    let strict = context.supplemental_groups_policy() == cri::SupplementalGroupsPolicy::Strict;
    Ok(agent::User {
        spec: chosen.unwrap_or_else(|| image.user.clone()),
        supplemental_gids: groups.collect::<Result<_, _>>()?,
        strict_groups: strict,
        gid,
    })
}

/// The signal that asks a container to end: the request's, the image's, or SIGTERM.
pub(crate) fn stop_signal(config: &cri::ContainerConfig, image: &RunConfig) -> Result<i32, SpecError> {
    match config.stop_signal() {
        cri::Signal::RuntimeDefault => parse_signal(&image.stop_signal).ok_or_else(|| {
            SpecError::invalid(
                "image.config.StopSignal",
                format!("{:?} is no signal", image.stop_signal),
            )
        }),
        asked => {
            let name = asked.as_str_name();
            let unknown = || SpecError::invalid("config.stop_signal", format!("{name} is no signal"));
            parse_signal(name.strip_prefix("SIGNAL_").unwrap_or(name)).ok_or_else(unknown)
        }
    }
}

/// "SIGTERM", "TERM", "15", "SIGRTMIN+3"; empty is SIGTERM.
fn parse_signal(text: &str) -> Option<i32> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if name.is_empty() {
        return Some(Signal::SIGTERM as i32);
    }
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let real_time = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text.get(1..)?.parse::<i32>().ok()
        }
    };
    // CRI writes RTMINPLUS3 and RTMAXMINUS2 where shells write RTMIN+3 and RTMAX-2.
    let name = name.replace("PLUS", "+").replace("MINUS", "-");
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(offset)
            .map(|offset| 34 + offset)
            .filter(|number| (34..=64).contains(number));
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(offset)
            .map(|offset| 64 - offset)
            .filter(|number| (34..=64).contains(number));
    }
    // Second names that signal(7) lists.
    let name = match name.as_str() {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        "UNUSED" => "SYS",
        other => other,
    };
    format!("SIG{name}")
        .parse::<Signal>()
        .ok()
        .map(|signal| signal as i32)
}

#[cfg(test)]
mod signal_tests {
    use super::*;

    #[test]
    fn signals_are_read_in_every_spelling() {
        for (text, number) in [
            ("", 15),
            ("SIGKILL", 9),
            ("usr1", 10),
            ("3", 3),
            ("SIGRTMIN+3", 37),
            ("RTMINPLUS3", 37),
            ("RTMAXMINUS2", 62),
            ("RTMAX", 64),
        ] {
            assert_eq!(parse_signal(text), Some(number), "{text}");
        }
        for text in ["SIGNOTHING", "65", "0", "RTMIN+40", "-1"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
    }

    #[test]
    fn every_signal_of_cri_has_a_number() {
        for value in 1..=65 {
            let Ok(signal) = cri::Signal::try_from(value) else {
                continue;
            };
            let config = cri::ContainerConfig {
                stop_signal: value,
                ..cri::ContainerConfig::default()
            };
            let number = stop_signal(&config, &RunConfig::default());
            assert!(number.is_ok(), "{}: {number:?}", signal.as_str_name());
        }
    }
}
