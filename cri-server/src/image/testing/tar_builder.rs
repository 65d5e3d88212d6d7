//! Writes tars, also strange ones.

/// One member; start from [`TarEntry::new`] and change what matters.
#[derive(Debug, Clone)]
pub struct TarEntry {
    pub path: Vec<u8>,
    pub type_flag: u8,
    pub link: Vec<u8>,
    pub data: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub device: (u64, u64),
    /// Records of a PAX header before the member. Values may be binary.
    pub pax: Vec<(String, Vec<u8>)>,
    /// Long names as GNU tar writes them instead of PAX records.
    pub gnu_long_names: bool,
}

impl TarEntry {
    pub fn new(type_flag: u8, path: impl AsRef<[u8]>) -> Self {
        Self {
            path: path.as_ref().to_vec(),
            type_flag,
            link: Vec::new(),
            data: Vec::new(),
            mode: if type_flag == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            pax: Vec::new(),
            gnu_long_names: false,
        }
    }

    pub fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax
            .push((format!("SCHILY.xattr.{name}"), value.as_ref().to_vec()));
        self
    }
}

/// A tar in memory.
#[derive(Debug, Clone, Default)]
pub struct TarBuilder {
    bytes: Vec<u8>,
}

impl TarBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(TarEntry {
            mode,
            ..TarEntry::new(b'5', path)
        })
    }

    pub fn file(self, path: &str, mode: u32, data: impl AsRef<[u8]>) -> Self {
        self.entry(TarEntry {
            mode,
            data: data.as_ref().to_vec(),
            ..TarEntry::new(b'0', path)
        })
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(TarEntry {
            link: target.into(),
            mode: 0o777,
            ..TarEntry::new(b'2', path)
        })
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(TarEntry {
            link: target.into(),
            ..TarEntry::new(b'1', path)
        })
    }

    pub fn entry(mut self, mut entry: TarEntry) -> Self {
        for (record, flag, text) in [
            ("path", b'L', entry.path.clone()),
            ("linkpath", b'K', entry.link.clone()),
        ] {
            if text.len() <= 100 {
                continue;
            }
            if entry.gnu_long_names {
                let long = [&text[..], b"\0"].concat();
                self.member(&TarEntry::new(flag, "././@LongLink"), &long);
            } else {
                entry.pax.push((record.to_owned(), text));
            }
        }
        for (record, value) in [("uid", &mut entry.uid), ("gid", &mut entry.gid)] {
            if *value >= 1 << 21 {
                entry
                    .pax
                    .push((record.to_owned(), value.to_string().into_bytes()));
                *value = 0;
            }
        }
        if !entry.pax.is_empty() {
            let records: Vec<u8> = entry
                .pax
                .iter()
                .flat_map(|(key, value)| pax_record(key, value))
                .collect();
            self.member(&TarEntry::new(b'x', "PaxHeaders/0"), &records);
        }
        self.member(&entry, &entry.data);
        self
    }

    /// Bytes that no tar writer would produce.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }

    fn member(&mut self, entry: &TarEntry, data: &[u8]) {
        let mut header = [0_u8; 512];
        let short = |text: &[u8]| text[..text.len().min(100)].to_vec();
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &short(&entry.path));
        put(100, format!("{:07o}", entry.mode).as_bytes());
        put(108, format!("{:07o}", entry.uid).as_bytes());
        put(116, format!("{:07o}", entry.gid).as_bytes());
        put(124, format!("{:011o}", data.len()).as_bytes());
        put(136, format!("{:011o}", entry.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[entry.type_flag]);
        put(157, &short(&entry.link));
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", entry.device.0).as_bytes());
        put(337, format!("{:07o}", entry.device.1).as_bytes());
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(header);
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }
}

fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = body.len() + 2;
    while length != body.len() + 1 + length.to_string().len() {
        length += 1;
    }
    [length.to_string().as_bytes(), b" ", &body].concat()
}
