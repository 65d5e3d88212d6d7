//! What fake processes can do: a very small shell, enough for the commands that tests of a runtime use.
//!
//! `true`, `false`, `exit N`, `echo [-n] …`, `printf TEXT`, `sleep N|infinity`, `cat` (stdin), `env`, `hostname`, `pwd`, `id`,
//! `flood BYTES` (numbered lines), `trap '' TERM`, `trap 'exit N' TERM`, `kill -N $$`, `oom`, and `sh -c` with `;`, `&&`,
//! newlines, quotes, `$NAME`, `>&2`, `> /dev/termination-log`, and `while true; do …; done`. Every other program does not
//! exist (ENOENT); one whose name ends in "not-executable" is not executable (EACCES).

use std::time::Duration;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Print {
        text: Vec<u8>,
        to: Target,
    },
    Environment,
    Sleep(Duration),
    Cat,
    Flood(usize),
    Trap {
        signal: i32,
        then: Trap,
    },
    /// 0 lets the script go on, others end it when `&&` or its end follows.
    Status(i32),
    Exit(i32),
    Killed {
        signal: i32,
        oom: bool,
    },
    Forever(Vec<Step>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Stdout,
    Stderr,
    TerminationLog,
}

/// What a signal does that would otherwise end the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trap {
    Ignore,
    Exit(i32),
}

/// What a script sees of its surroundings.
#[derive(Debug, Clone, Default)]
pub(super) struct Surroundings {
    pub(super) env: Vec<(String, String)>,
    pub(super) hostname: String,
    pub(super) cwd: String,
    pub(super) user: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `;`, a newline or `&&`.
    Next,
}

/// Reads a command; the error is the errno of its execve.
pub(super) fn parse(args: &[String], around: &Surroundings) -> Result<Vec<Step>, i32> {
    let program = args.first().map(|path| path.rsplit('/').next().unwrap_or(path));
    match (program, args.get(1..)) {
        (Some("sh" | "bash" | "ash"), Some([flag, script, ..])) if flag == "-c" => {
            Ok(steps(&tokens(script, around), around))
        }
        // A shell without a script reads one that never comes.
        (Some("sh" | "bash" | "ash"), _) => Ok(vec![Step::Cat]),
        (Some(name), Some(words)) => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            command(name, &words, around)
        }
        _ => Err(libc::ENOENT),
    }
}

fn command(name: &str, words: &[&str], around: &Surroundings) -> Result<Vec<Step>, i32> {
    let (words, to) = redirection(words);
    let print = |text: String| {
        Ok(vec![Step::Print {
            text: text.into_bytes(),
            to,
        }])
    };
    let number = |at: usize| words.get(at).and_then(|word| word.parse().ok());
    match name {
        "true" | ":" => Ok(vec![Step::Status(0)]),
        "false" => Ok(vec![Step::Status(1)]),
        "exit" => Ok(vec![Step::Exit(number(0).unwrap_or(0) & 255)]),
        "echo" => match words {
            ["-n", rest @ ..] => print(rest.join(" ")),
            words => print(words.join(" ") + "\n"),
        },
        "printf" => print(
            words
                .first()
                .unwrap_or(&"")
                .replace("\\n", "\n")
                .replace("\\t", "\t"),
        ),
        "hostname" => print(format!("{}\n", around.hostname)),
        "pwd" => print(format!("{}\n", around.cwd)),
        "id" => print(format!("uid={}\n", around.user)),
        "env" => Ok(vec![Step::Environment]),
        "sleep" | "pause" => {
            let seconds = words.first().and_then(|word| word.parse::<f64>().ok());
            // "infinity" parses as a number as well, and is no duration.
            let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            Ok(vec![Step::Sleep(
                duration.unwrap_or(Duration::from_secs(86_400 * 365)),
            )])
        }
        "cat" => Ok(vec![Step::Cat]),
        "flood" => Ok(vec![Step::Flood(
            words.first().and_then(|word| word.parse().ok()).unwrap_or(0),
        )]),
        "oom" => Ok(vec![Step::Killed {
            signal: libc::SIGKILL,
            oom: true,
        }]),
        "kill" => {
            let signal = words
                .first()
                .and_then(|word| signal_number(word.trim_start_matches('-')));
            Ok(vec![Step::Killed {
                signal: signal.unwrap_or(libc::SIGTERM),
                oom: false,
            }])
        }
        "trap" => match words {
            [then, signals @ ..] => {
                let exit = then
                    .strip_prefix("exit")
                    .map(|code| code.trim().parse().unwrap_or(0));
                let then = exit.map_or(Trap::Ignore, Trap::Exit);
                let signals = signals.iter().filter_map(|word| signal_number(word));
                Ok(signals.map(|signal| Step::Trap { signal, then }).collect())
            }
            [] => Ok(Vec::new()),
        },
        other if other.ends_with("not-executable") => Err(libc::EACCES),
        _ => Err(libc::ENOENT),
    }
}

fn redirection<'w>(words: &'w [&'w str]) -> (&'w [&'w str], Target) {
    match words {
        [rest @ .., ">&2" | "1>&2"] => (rest, Target::Stderr),
        [rest @ .., ">", "/dev/termination-log"] => (rest, Target::TerminationLog),
        [rest @ .., ">/dev/termination-log"] => (rest, Target::TerminationLog),
        words => (words, Target::Stdout),
    }
}

fn signal_number(name: &str) -> Option<i32> {
    match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => Some(libc::SIGHUP),
        "INT" => Some(libc::SIGINT),
        "QUIT" => Some(libc::SIGQUIT),
        "KILL" => Some(libc::SIGKILL),
        "TERM" => Some(libc::SIGTERM),
        "USR1" => Some(libc::SIGUSR1),
        number => number.parse().ok(),
    }
}

fn steps(tokens: &[Token], around: &Surroundings) -> Vec<Step> {
    let words = |tokens: &[Token]| -> Vec<String> {
        let words = tokens.iter().filter_map(|token| match token {
            Token::Word(word) => Some(word.clone()),
            Token::Next => None,
        });
        words.collect()
    };
    let is = |token: &Token, wanted: &str| matches!(token, Token::Word(word) if word == wanted);
    // "while true; do BODY; done": the last loop of a script, or all of it.
    if let Some(start) = tokens.iter().position(|token| is(token, "while"))
        && let Some(body_start) = tokens.iter().position(|token| is(token, "do"))
        && let Some(body_end) = tokens.iter().rposition(|token| is(token, "done"))
    {
        let mut all = steps(tokens.get(..start).unwrap_or_default(), around);
        let body = tokens.get(body_start + 1..body_end).unwrap_or_default();
        all.push(Step::Forever(steps(body, around)));
        return all;
    }
    let mut all = Vec::new();
    for statement in tokens.split(|token| *token == Token::Next) {
        let mut words = words(statement);
        if words.first().is_some_and(|word| word == "exec") {
            words.remove(0);
        }
        let Some((name, rest)) = words.split_first() else {
            continue;
        };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        // What a shell says of a command that it does not find.
        all.extend(command(name, &rest, around).unwrap_or_else(|_| {
            vec![
                Step::Print {
                    text: format!("sh: {name}: not found\n").into_bytes(),
                    to: Target::Stderr,
                },
                Step::Status(127),
            ]
        }));
    }
    all
}

fn tokens(script: &str, around: &Surroundings) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = script.chars().peekable();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None | Some('"'), '$') => {
                let mut name = String::new();
                while let Some(next) =
                    characters.next_if(|next| next.is_alphanumeric() || matches!(next, '_' | '$'))
                {
                    name.push(next);
                }
                word.get_or_insert_default().push_str(variable(&name, around));
            }
            (None, ' ' | '\t') => tokens.extend(word.take().map(Token::Word)),
            (None, ';' | '\n') => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(Token::Next);
            }
            (None, '&') if characters.next_if_eq(&'&').is_some() => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(Token::Next);
            }
            (_, other) => word.get_or_insert_default().push(other),
        }
    }
    tokens.extend(word.map(Token::Word));
    tokens
}

fn variable<'a>(name: &str, around: &'a Surroundings) -> &'a str {
    if name == "$" {
        return "1";
    }
    let found = around.env.iter().find(|(key, _)| key == name);
    found.map_or("", |(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<Step> {
        let around = Surroundings {
            env: vec![("NAME".to_owned(), "a b".to_owned())],
            ..Surroundings::default()
        };
        let args = ["/bin/sh", "-c", script].map(str::to_owned);
        parse(&args, &around).unwrap()
    }

    fn print(text: &str, to: Target) -> Step {
        Step::Print {
            text: text.as_bytes().to_vec(),
            to,
        }
    }

    #[test]
    fn scripts_of_tests_are_understood() {
        assert_eq!(
            sh("echo \"x; $NAME\" >&2; printf 'no\\n' && exit 3"),
            [
                print("x; a b\n", Target::Stderr),
                print("no\n", Target::Stdout),
                Step::Exit(3)
            ]
        );
        assert_eq!(
            sh("trap '' TERM; while true; do sleep 1; done"),
            [
                Step::Trap {
                    signal: libc::SIGTERM,
                    then: Trap::Ignore
                },
                Step::Forever(vec![Step::Sleep(Duration::from_secs(1))])
            ]
        );
        assert_eq!(
            sh("echo -n bye > /dev/termination-log"),
            [print("bye", Target::TerminationLog)]
        );
        assert_eq!(sh("missing a")[1], Step::Status(127));
    }

    #[test]
    fn programs_that_do_not_exist_are_no_programs() {
        let parse = |program: &str| parse(&[program.to_owned()], &Surroundings::default());
        assert_eq!(parse("/no/such"), Err(libc::ENOENT));
        assert_eq!(parse("/etc/not-executable"), Err(libc::EACCES));
        assert_eq!(parse("/bin/true"), Ok(vec![Step::Status(0)]));
    }
}
