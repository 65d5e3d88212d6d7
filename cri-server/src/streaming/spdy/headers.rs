//! Header blocks of SPDY/3: pairs of length-prefixed names and values, in one zlib stream per direction and connection.

use std::collections::BTreeMap;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{dictionary::DICTIONARY, error::SpdyError};

/// Bytes of one block after decompression; Kubernetes' clients send less than 200.
const MAX_BLOCK: usize = 64 * 1024;
/// Inflated at once.
const STEP: usize = 4 * 1024;

/// Names in lower case and their values; several values of one name are separated by zeros.
pub(crate) type Headers = BTreeMap<String, String>;

/// Reads the header blocks of one direction.
#[derive(Debug)]
pub(super) struct HeaderReader {
    inflate: Decompress,
}

/// Writes the header blocks of one direction.
#[derive(Debug)]
pub(super) struct HeaderWriter {
    deflate: Compress,
    begun: bool,
}

impl HeaderReader {
    pub(super) fn new() -> Self {
        Self {
            inflate: Decompress::new(true),
        }
    }

    /// One block. After an error the stream is lost.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        let plain = self.inflate(block)?;
        let mut rest = plain.as_slice();
        let count = take_length(&mut rest)?;
        // Each takes eight bytes at least: no count makes us reserve anything.
        let mut headers = Headers::new();
        for _ in 0..count {
            let name = take_text(&mut rest)?.to_ascii_lowercase();
            let value = take_text(&mut rest)?;
            if name.is_empty() {
                return Err(SpdyError::Headers("with an empty name"));
            }
            if headers.insert(name, value).is_some() {
                return Err(SpdyError::Headers("with a name twice"));
            }
        }
        if rest.is_empty() {
            Ok(headers)
        } else {
            Err(SpdyError::Headers("with bytes behind its last value"))
        }
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let begin = self.inflate.total_in();
        let mut plain = Vec::new();
        loop {
            let consumed = usize::try_from(self.inflate.total_in() - begin).unwrap_or(usize::MAX);
            let rest = block.get(consumed..).unwrap_or_default();
            plain.reserve(STEP);
            match self
                .inflate
                .decompress_vec(rest, &mut plain, FlushDecompress::Sync)
            {
                Ok(Status::StreamEnd) => return Err(SpdyError::Headers("at the end of its zlib stream")),
                // Room that is left says that everything was taken.
                Ok(_) if plain.len() < plain.capacity() => break,
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| SpdyError::Headers("of another dictionary"))?;
                }
                Err(_) => return Err(SpdyError::Headers("that is not deflated")),
            }
            if plain.len() > MAX_BLOCK {
                return Err(SpdyError::Headers("that is too long"));
            }
        }
        let consumed = usize::try_from(self.inflate.total_in() - begin);
        if consumed == Ok(block.len()) {
            Ok(plain)
        } else {
            Err(SpdyError::Headers("with bytes that do not belong to it"))
        }
    }
}

impl HeaderWriter {
    pub(super) fn new() -> Self {
        Self {
            deflate: Compress::new(Compression::fast(), true),
            begun: false,
        }
    }

    /// One block, deflated and flushed.
    pub(super) fn write(&mut self, headers: &Headers) -> Vec<u8> {
        if !std::mem::replace(&mut self.begun, true) {
            // Only a stream that has begun refuses its dictionary.
            drop(self.deflate.set_dictionary(&DICTIONARY));
        }
        let mut plain = length(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&length(text.len()));
            plain.extend_from_slice(text.as_bytes());
        }
        let begin = self.deflate.total_in();
        let mut block = Vec::new();
        loop {
            let consumed = usize::try_from(self.deflate.total_in() - begin).unwrap_or(usize::MAX);
            let rest = plain.get(consumed..).unwrap_or_default();
            block.reserve(STEP);
            let status = self.deflate.compress_vec(rest, &mut block, FlushCompress::Sync);
            if status.is_err() || block.len() < block.capacity() {
                return block;
            }
        }
    }
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

fn take_length(rest: &mut &[u8]) -> Result<usize, SpdyError> {
    let (length, after) = rest
        .split_first_chunk::<4>()
        .ok_or(SpdyError::Headers("that is cut off"))?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*length)).map_err(|_| SpdyError::Headers("that is too long"))
}

fn take_text(rest: &mut &[u8]) -> Result<String, SpdyError> {
    let length = take_length(rest)?;
    let (text, after) = rest
        .split_at_checked(length)
        .ok_or(SpdyError::Headers("that is cut off"))?;
    *rest = after;
    String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Headers("that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let pairs = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        pairs.collect()
    }

    #[test]
    fn blocks_of_one_connection_share_a_stream() {
        let (mut writer, mut reader) = (HeaderWriter::new(), HeaderReader::new());
        let long = "x".repeat(20_000);
        for headers in [
            headers(&[("streamtype", "error")]),
            headers(&[]),
            headers(&[("streamtype", "data"), ("port", "80"), ("requestid", "1")]),
            headers(&[("long", &long)]),
            headers(&[("streamtype", "data"), ("port", "80"), ("requestid", "2")]),
        ] {
            assert_eq!(reader.read(&writer.write(&headers)).unwrap(), headers);
        }
    }

    /// What Go's implementation sends as its first block for `streamType: error`.
    #[test]
    fn a_block_of_another_implementation_is_read() {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&DICTIONARY).unwrap();
        let plain = b"\0\0\0\x01\0\0\0\x0astreamType\0\0\0\x05error";
        let mut block = Vec::with_capacity(1000);
        deflate
            .compress_vec(plain, &mut block, FlushCompress::Sync)
            .unwrap();
        assert_eq!(
            HeaderReader::new().read(&block).unwrap(),
            headers(&[("streamtype", "error")])
        );
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let block_of = |plain: &[u8]| {
            let mut deflate = Compress::new(Compression::fast(), true);
            deflate.set_dictionary(&DICTIONARY).unwrap();
            let mut block = Vec::with_capacity(plain.len() + 1000);
            deflate
                .compress_vec(plain, &mut block, FlushCompress::Sync)
                .unwrap();
            block
        };
        let bomb = vec![0; 10 << 20];
        for (block, reason) in [
            (b"plain text".to_vec(), "not deflated"),
            (Vec::new(), "cut off"),
            (block_of(b"\0\0\0\x01\0\0\0\x01a"), "cut off"),
            (block_of(b"\xff\xff\xff\xff"), "cut off"),
            (block_of(b"\0\0\0\x01\xff\xff\xff\xffa"), "cut off"),
            (block_of(b"\0\0\0\0more"), "behind its last"),
            (block_of(b"\0\0\0\x01\0\0\0\0\0\0\0\0"), "empty name"),
            (block_of(b"\0\0\0\x01\0\0\0\x01\xff\0\0\0\0"), "UTF-8"),
            (
                block_of(b"\0\0\0\x02\0\0\0\x01a\0\0\0\0\0\0\0\x01A\0\0\0\0"),
                "twice",
            ),
            (block_of(&bomb), "too long"),
        ] {
            let error = HeaderReader::new().read(&block).unwrap_err();
            assert!(error.to_string().contains(reason), "{error} is not {reason}");
        }
    }
}
