//! Reads a file as fast as it goes and prints MiB/s: `reader sequential FILE`, or `reader random FILE` for pages in an order that
//! nobody can foresee. A program of its own, without libraries, since it also runs in containers of images that have nothing.

use std::{
    env,
    error::Error,
    fs::File,
    io::{Read as _, Write as _, stdout},
    os::unix::fs::FileExt as _,
    time::Instant,
};

const BLOCK: usize = 128 * 1024;
const PAGE: usize = 4096;
/// Pages read at random.
const READS: u64 = 16_384;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(how), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("reader sequential|random FILE".into());
    };
    let file = File::open(path)?;
    let began = Instant::now();
    let bytes = match how.as_str() {
        "sequential" => sequential(file)?,
        "random" => random(&file)?,
        other => return Err(format!("{other}: neither sequential nor random").into()),
    };
    let seconds = began.elapsed().as_secs_f64();
    writeln!(stdout(), "{}", bytes as f64 / f64::from(1 << 20) / seconds)?;
    Ok(())
}

fn sequential(mut file: File) -> std::io::Result<usize> {
    let mut buffer = vec![0; BLOCK];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(bytes),
            count => bytes += count,
        }
    }
}

fn random(file: &File) -> std::io::Result<usize> {
    let pages = (file.metadata()?.len() / PAGE as u64).max(1);
    let mut buffer = [0; PAGE];
    // Marsaglia's xorshift, the same order each time.
    let mut state: u64 = 0x2545_F491_4F6C_DD1D;
    for _ in 0..READS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.read_exact_at(&mut buffer, state % pages * PAGE as u64)?;
    }
    Ok(usize::try_from(READS).unwrap_or(usize::MAX).saturating_mul(PAGE))
}
