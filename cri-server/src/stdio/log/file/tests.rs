//! Kills at every place where a SIGKILL can hit the writer, rotations included: the logs together hold each byte once.

use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// A process's whole output, and the log directory.
struct World {
    directory: tempfile::TempDir,
    output: Vec<(Stream, u8)>,
    rotated: Vec<PathBuf>,
    acknowledged: u64,
}

/// What happens after one frame.
#[derive(Debug, Clone)]
enum Fate {
    Goes,
    /// kubelet rotates and tells us.
    Rotates,
    /// Killed after so much (of 256 parts) of what the frame added to the log; the position is not written.
    DiesBeforePosition(u8),
    /// Killed after everything was written.
    DiesAfterPosition,
    /// Killed between kubelet's renaming and our new file; so much of the frame is in the log.
    DiesInRotation(u8),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Goes),
        1 => Just(Fate::Rotates),
        2 => any::<u8>().prop_map(Fate::DiesBeforePosition),
        1 => Just(Fate::DiesAfterPosition),
        1 => any::<u8>().prop_map(Fate::DiesInRotation),
    ]
}

/// Output of a process that writes lines of all lengths to both streams.
fn output() -> impl Strategy<Value = Vec<(Stream, u8)>> {
    let text = prop_oneof![
        4 => "[a-z \n]{0,40}".prop_map(String::into_bytes),
        1 => (1..3 * lines::MAX_LINE).prop_map(|len| vec![b'L'; len]),
        1 => (0..200_usize).prop_map(|len| b"\n".repeat(len)),
        1 => prop::collection::vec(any::<u8>(), 0..50),
    ];
    prop::collection::vec((any::<bool>(), text), 0..30).prop_map(|writes| {
        let stream = |stderr| if stderr { Stream::Stderr } else { Stream::Stdout };
        let bytes =
            |(stderr, text): (bool, Vec<u8>)| text.into_iter().map(move |byte| (stream(stderr), byte));
        writes.into_iter().flat_map(bytes).collect()
    })
}

impl World {
    fn new(output: Vec<(Stream, u8)>) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            output,
            rotated: Vec::new(),
            acknowledged: 0,
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("pod/c/0.log")
    }

    fn position(&self) -> PathBuf {
        self.directory.path().join("position")
    }

    fn start(&self) -> (LogWriter, usize) {
        let writer = LogWriter::open(Some(&self.log()), &self.position()).unwrap();
        let offset = writer.stored_offset();
        assert!(
            offset >= self.acknowledged,
            "bytes are wanted that were acknowledged"
        );
        (writer, usize::try_from(offset).unwrap())
    }

    /// The frame of at most `size` bytes at `offset`: one stream only.
    fn frame(&self, offset: usize, size: usize) -> (Stream, Vec<u8>) {
        let stream = self.output[offset].0;
        let bytes = self.output[offset..]
            .iter()
            .take(size)
            .take_while(|(of, _)| *of == stream);
        (stream, bytes.map(|(_, byte)| *byte).collect())
    }

    fn rotate(&mut self) {
        let name = self
            .log()
            .with_extension(format!("log.2026-{:04}", self.rotated.len()));
        fs_err::rename(self.log(), &name).unwrap();
        self.rotated.push(name);
    }

    /// Brings the files to where a kill would have left them: a part of the log, the old position.
    fn tear(&self, before: (u64, &[u8]), part: u8) {
        let (len, position) = before;
        let log = File::options().write(true).open(self.log()).unwrap();
        let added = log.metadata().unwrap().len() - len;
        log.set_len(len + added * u64::from(part) / 255).unwrap();
        fs_err::write(self.position(), position).unwrap();
    }

    fn run(&mut self, frames: Vec<(usize, Fate)>) {
        let mut frames = frames.into_iter().chain(std::iter::repeat((5000, Fate::Goes)));
        let (mut writer, mut offset) = self.start();
        while offset < self.output.len() {
            let (size, fate) = frames.next().unwrap();
            let before_len = fs_err::metadata(self.log()).unwrap().len();
            let before_position = fs_err::read(self.position()).unwrap();
            let (stream, bytes) = self.frame(offset, size);
            writer.push(stream, &bytes);
            writer.commit().unwrap();
            offset += bytes.len();
            match fate {
                Fate::Goes => self.acknowledged = writer.stored_offset(),
                Fate::Rotates => {
                    self.rotate();
                    writer.reopen().unwrap();
                }
                Fate::DiesBeforePosition(part) => self.tear((before_len, &before_position), part),
                Fate::DiesInRotation(part) => {
                    self.tear((before_len, &before_position), part);
                    self.rotate();
                }
                Fate::DiesAfterPosition => {}
            }
            if !matches!(fate, Fate::Goes | Fate::Rotates) {
                drop(writer);
                (writer, offset) = self.start();
            }
        }
        for stream in STREAMS {
            writer.end(stream);
        }
        writer.commit().unwrap();
    }

    /// What a reader of all logs sees of `stream`.
    fn read(&self, stream: &str) -> Vec<u8> {
        let mut seen = Vec::new();
        for path in self.rotated.iter().chain([&self.log()]) {
            let log = fs_err::read(path).unwrap();
            assert!(
                log.is_empty() || log.ends_with(b"\n"),
                "{} ends in the middle",
                path.display()
            );
            for line in log.split_inclusive(|byte| *byte == b'\n') {
                let (timestamp, rest) = line.split_at(30);
                assert!(timestamp.ends_with(b"Z"), "{}", line.escape_ascii());
                let Some(rest) = rest.strip_prefix(format!(" {stream} ").as_bytes()) else {
                    continue;
                };
                let text = &rest[2..rest.len() - 1];
                assert!(text.len() <= lines::MAX_LINE);
                seen.extend_from_slice(text);
                if rest.starts_with(b"F") {
                    seen.push(b'\n');
                }
            }
        }
        seen
    }

    fn assert_every_byte_once(&self) {
        for (stream, name) in STREAMS.into_iter().zip(["stdout", "stderr"]) {
            let wrote: Vec<u8> = self
                .output
                .iter()
                .filter(|(of, _)| *of == stream)
                .map(|(_, byte)| *byte)
                .collect();
            let mut seen = self.read(name);
            if seen.len() == wrote.len() + 1 && !wrote.ends_with(b"\n") {
                // The log ends the last line of a stream.
                assert_eq!(seen.pop(), Some(b'\n'));
            }
            assert!(
                seen == wrote,
                "{name}: {} bytes seen, {} written",
                seen.len(),
                wrote.len()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_byte_is_lost_or_doubled_wherever_the_daemon_is_killed(
        output in output(),
        frames in prop::collection::vec((1_usize..20_000, fate()), 0..60),
    ) {
        let mut world = World::new(output);
        world.run(frames);
        world.assert_every_byte_once();
    }
}

#[test]
fn a_stalled_line_does_not_hold_up_the_other_stream() {
    let flood = std::iter::repeat_n((Stream::Stderr, b'e'), 3 * proto::stdio::WINDOW);
    let output = std::iter::once((Stream::Stdout, b'?')).chain(flood).collect();
    let mut world = World::new(output);
    world.run(vec![(65_536, Fate::Goes); 8]);
    let behind = world.output.len() as u64 - world.acknowledged;
    assert!(
        behind <= proto::stdio::WINDOW as u64,
        "{behind} bytes are not acknowledged"
    );
    world.assert_every_byte_once();
}

#[test]
fn the_log_is_for_root_and_its_group_and_its_directory_is_made() {
    let world = World::new(Vec::new());
    drop(world.start());
    let mode = |path: &Path| fs_err::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (
            mode(&world.log()) & 0o137,
            mode(world.log().parent().unwrap()) & 0o022
        ),
        (0, 0)
    );
}

#[test]
fn without_a_log_path_the_position_is_kept_all_the_same() {
    let world = World::new(Vec::new());
    let mut writer = LogWriter::open(None, &world.position()).unwrap();
    writer.push(Stream::Stdout, b"a\nb");
    writer.commit().unwrap();
    writer.reopen().unwrap();
    drop(writer);
    let writer = LogWriter::open(None, &world.position()).unwrap();
    assert_eq!(writer.stored_offset(), 2);
}

#[test]
fn a_full_disk_loses_nothing_and_a_rotation_takes_the_lines_along() {
    let mut world = World::new(b"one\ntwo\n".iter().map(|byte| (Stream::Stdout, *byte)).collect());
    let (mut writer, _) = world.start();
    writer.push(Stream::Stdout, b"one\n");
    writer.commit().unwrap();
    // /dev/full answers every write with ENOSPC.
    let full = File::options().append(true).open("/dev/full").unwrap();
    let log = std::mem::replace(&mut writer.log.as_mut().unwrap().file, full);
    writer.push(Stream::Stdout, b"two\n");
    assert_eq!(writer.commit().unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(
        writer.stored_offset(),
        4,
        "nothing is acknowledged that is not stored"
    );
    // A part of the line went through before the disk was full.
    (&log).write_all(b"2026-01-01T00:00:00.00").unwrap();
    writer.log.as_mut().unwrap().file = log;
    world.rotate();
    writer.reopen().unwrap();
    writer.commit().unwrap();
    assert_eq!(writer.stored_offset(), 8);
    world.assert_every_byte_once();
    assert_eq!(fs_err::read_to_string(world.log()).unwrap().lines().count(), 1);
}
