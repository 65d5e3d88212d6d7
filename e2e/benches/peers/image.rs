//! What is read of an image: how fast, beside a plain file of the host's, and in how many copies many pods of one image have it
//! in memory.

use std::{
    env,
    fs::File,
    io::{BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use e2e::{Figures, Node, PodSpec, process};
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use tokio::process::Command;

use crate::pod::{Peer, processes};

/// Names of the series.
pub(crate) const FIRST: &str = "first sequential read of an image's file";
pub(crate) const AGAIN: &str = "sequential read of an image's file";
pub(crate) const RANDOM: &str = "4 KiB random read of an image's file";
pub(crate) const OWN: &str = "sequential read of the pod's own memory";
pub(crate) const OWN_RANDOM: &str = "4 KiB random read of the pod's own memory";

/// An image with one large file and the program that reads it, and both as plain files of the host.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) name: String,
    mebibytes: usize,
    directory: TempDir,
}

impl Image {
    /// Pushes it to the node's registry. `None` without the program, which `e2e/bench` builds: CLEARPOD_BENCH_READER.
    pub(crate) async fn push(node: &Node, mebibytes: usize) -> Result<Option<Self>> {
        let Some(reader) = env::var_os("CLEARPOD_BENCH_READER") else {
            return Ok(None);
        };
        // Where images are, too: the same file system.
        let directory = tempfile::Builder::new()
            .prefix("cpimage")
            .tempdir_in("/var/lib")?;
        fs_err::copy(reader, directory.path().join("reader"))?;
        write_noise(&directory.path().join("large"), mebibytes)?;
        let name = node.push_with("e2e/large:latest", directory.path()).await?;
        Ok(Some(Self {
            name,
            mebibytes,
            directory,
        }))
    }

    /// MiB/s of the plain file, and of a part of it in memory, read by the same program on the host.
    pub(crate) async fn read_on_host(&self, figures: &mut Figures) -> Result<()> {
        let large = self.directory.path().join("large");
        let mut own = NamedTempFile::new_in("/dev/shm")?;
        let mut part = File::open(&large)?.take(OWN_MIB << 20);
        tokio::task::block_in_place(|| std::io::copy(&mut part, own.as_file_mut()))?;
        let of_file = READS.map(|(series, how)| (series, how, large.as_path()));
        let of_own = OWN_READS.map(|(series, how)| (series, how, own.path()));
        for (series, how, file) in of_file.into_iter().chain(of_own) {
            let mut command = Command::new(self.directory.path().join("reader"));
            let output = command.arg(how).arg(file).output().await?;
            ensure!(output.status.success(), "reader: {output:?}");
            figures.add(series, rate(&String::from_utf8_lossy(&output.stdout))?);
        }
        Ok(())
    }

    /// MiB/s in a pod of its own.
    pub(crate) async fn read_in_pod(&self, peer: &Peer, name: &str, figures: &mut Figures) -> Result<()> {
        let pod = peer.pod(name);
        let (sandbox, container) = self.run(peer, &pod).await?;
        for (series, how) in READS {
            figures.add(series, rate(&read(peer, &container, how, "/large").await?)?);
        }
        // What reads can be at best: of pages that were the pod's from the beginning. /dev/shm has 64 MiB.
        let copied = peer
            .cri
            .exec(&container, "head -c 50331648 /large >/dev/shm/own")
            .await?;
        ensure!(copied.0 == 0, "copy of the image's file: {copied:?}");
        for (series, how) in [(OWN, "sequential"), (OWN_RANDOM, "random")] {
            figures.add(series, rate(&read(peer, &container, how, "/dev/shm/own").await?)?);
        }
        peer.cri.remove_pod(&sandbox).await?;
        Ok(())
    }

    /// Pods that have all read the whole file: how often it is in memory.
    pub(crate) async fn share(&self, peer: &Peer, pods: usize, images: &Path) -> Result<Value> {
        let before = processes()?;
        let mut running = Vec::new();
        let mut most_cached: u64 = 0;
        for number in 0..pods {
            let pod = peer.pod(&format!("shares-{number}"));
            let (sandbox, container) = self.run(peer, &pod).await?;
            running.push(sandbox);
            read(peer, &container, "sequential", "/large").await?;
            let (_, meminfo, _) = peer.cri.exec(&container, "cat /proc/meminfo").await?;
            most_cached = most_cached.max(process::field_kib(&meminfo, "Cached").context("Cached")?);
        }
        let (mut of_images, mut of_all) = (0, 0);
        for pid in processes()?.difference(&before) {
            // One that has ended since counts nothing.
            for mapping in process::mappings(*pid).unwrap_or_default() {
                of_all += mapping.pss_kib;
                if Path::new(&mapping.name).starts_with(images) {
                    of_images += mapping.pss_kib;
                }
            }
        }
        for sandbox in running {
            peer.cri.remove_pod(&sandbox).await?;
        }
        let copies = of_images as f64 / 1024.0 / self.mebibytes as f64;
        ensure!(
            copies > 0.1,
            "{of_images} KiB of images in {} are mapped, of {of_all} KiB that the pods have",
            images.display()
        );
        Ok(
            json!({"pods": pods, "file_mib": self.mebibytes, "copies": copies, "pss_of_images_mib": of_images as f64 / 1024.0,
            "pss_of_all_mib": of_all as f64 / 1024.0, "most_cached_in_a_guest_mib": most_cached as f64 / 1024.0}),
        )
    }

    async fn run(&self, peer: &Peer, pod: &PodSpec) -> Result<(String, String)> {
        let sandbox = peer.cri.run_pod_with(pod, peer.handler).await?;
        let script = "exec sleep 100000";
        let container = peer
            .cri
            .run_shell(&sandbox, pod, "main", &self.name, script)
            .await?;
        Ok((sandbox, container))
    }
}

/// In this order: the first is what a pod sees that has just started.
const READS: [(&str, &str); 3] = [(FIRST, "sequential"), (AGAIN, "sequential"), (RANDOM, "random")];

/// Of a part of it that is in memory; a pod's /dev/shm has 64 MiB.
const OWN_READS: [(&str, &str); 2] = [(OWN, "sequential"), (OWN_RANDOM, "random")];
const OWN_MIB: u64 = 48;

async fn read(peer: &Peer, container: &str, how: &str, file: &str) -> Result<String> {
    let (code, out, said) = peer.cri.exec_program(container, &["/reader", how, file]).await?;
    ensure!(code == 0, "reader ended with {code}: {said}");
    Ok(out)
}

fn rate(printed: &str) -> Result<f64> {
    printed
        .trim()
        .parse()
        .with_context(|| format!("{printed:?} is no rate"))
}

/// Bytes that do not compress, so that what is stored and read are this many. Xorshift, as in the reader.
fn write_noise(path: &PathBuf, mebibytes: usize) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    for _ in 0..mebibytes << 17 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    file.flush()?;
    Ok(())
}
