//! Header blocks (RFC 7541), as far as it takes to replace one field's value without knowing the others.
//!
//! Both ends of a connection keep a table of the fields that were sent, and its evictions go by the decoded lengths. So a
//! value may be replaced by any other of the same decoded length, and every index that either end uses stays right: no
//! table has to be kept here. What replaces it is encoded in the fewest bits that there are, so a block does not grow, but
//! by a byte for an empty value.

/// `:authority` in the static table, there with an empty value.
const AUTHORITY_INDEX: usize = 1;
const AUTHORITY: &[u8] = b":authority";
/// The same in the Huffman code. A string has one encoding only.
const AUTHORITY_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
/// How many symbols have a code of so many bits. The code is canonical, so that is all that counting symbols needs. The
/// end-of-string symbol (30 ones) is not among them: in a string it is an error.
const CODES_OF_LENGTH: [u32; 31] = [
    0, 0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29, 0, 3,
];
/// Bits of the code for "0", which are all zero.
const ZERO_CODE_BITS: usize = 5;
/// The first bit of a string says that it is in the Huffman code.
const HUFFMAN: u8 = 0x80;

/// Not a header block. Who decodes it in earnest says so to the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The block with "00…0" for each value of `:authority`, and none where it is empty; `None` when it has no such field.
pub(super) fn with_plain_authority(block: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let mut rewritten = Vec::with_capacity(block.len());
    let mut reader = Reader { rest: block };
    while let Some(&first) = reader.rest.first() {
        let field = reader.rest;
        match reader.field(first)? {
            Field::Other => rewritten.extend_from_slice(&field[..field.len() - reader.rest.len()]),
            Field::EmptyAuthority => {}
            Field::Authority { before_value, length } => {
                rewritten.extend_from_slice(&field[..before_value]);
                push_zeros(length, &mut rewritten);
            }
        }
    }
    // A replaced value is never what it was, unless it was all zeros: then nothing needs to be done either.
    Ok((rewritten != block).then_some(rewritten))
}

/// What the rewriting needs to know of one field.
enum Field {
    Other,
    /// Leaves no trace in the table, so it can be left out.
    EmptyAuthority,
    Authority {
        /// Bytes of the representation that stay.
        before_value: usize,
        /// Of the value, decoded.
        length: usize,
    },
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// RFC 7541 section 6: what a field's first bits mean.
    fn field(&mut self, first: u8) -> Result<Field, Malformed> {
        match first {
            0x80.. => match self.integer(7)? {
                0 => Err(Malformed),
                AUTHORITY_INDEX => Ok(Field::EmptyAuthority),
                _ => Ok(Field::Other),
            },
            0x40..0x80 => self.literal(6, true),
            0x20..0x40 => self.integer(5).map(|_| Field::Other),
            _ => self.literal(4, false),
        }
    }

    fn literal(&mut self, prefix_bits: u32, enters_table: bool) -> Result<Field, Malformed> {
        let whole = self.rest.len();
        let is_authority = match self.integer(prefix_bits)? {
            0 => matches!(self.string()?, (false, AUTHORITY) | (true, AUTHORITY_HUFFMAN)),
            index => index == AUTHORITY_INDEX,
        };
        let before_value = whole - self.rest.len();
        let (huffman, value) = self.string()?;
        if !is_authority {
            return Ok(Field::Other);
        }
        let length = if huffman {
            decoded_length(value)?
        } else {
            value.len()
        };
        match (length, enters_table) {
            (0, false) => Ok(Field::EmptyAuthority),
            // h2 takes no empty one, so its entry has to become a byte longer. Where that makes h2's table drop its oldest
            // entry before the client's does, and the client names that entry once more, h2 ends the connection (the index is
            // beyond its table) and the client makes another; no index ever means another field.
            (0, true) => Ok(Field::Authority {
                before_value,
                length: 1,
            }),
            _ => Ok(Field::Authority { before_value, length }),
        }
    }

    /// Whether it is in the Huffman code, and its bytes.
    fn string(&mut self) -> Result<(bool, &'a [u8]), Malformed> {
        let huffman = *self.rest.first().ok_or(Malformed)? & HUFFMAN != 0;
        let length = self.integer(7)?;
        let (string, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok((huffman, string))
    }

    /// RFC 7541 section 5.1.
    fn integer(&mut self, prefix_bits: u32) -> Result<usize, Malformed> {
        let mask = (1u8 << prefix_bits) - 1;
        let mut value = usize::from(self.byte()? & mask);
        if value < usize::from(mask) {
            return Ok(value);
        }
        // Three more bytes are two million, more than any block has; h2 allows no more than four.
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.rest.split_first().ok_or(Malformed)?;
        self.rest = rest;
        Ok(byte)
    }
}

/// How many symbols a string in the Huffman code has.
fn decoded_length(string: &[u8]) -> Result<usize, Malformed> {
    let (mut symbols, mut bits, mut code, mut first_code) = (0, 0, 0u32, 0u32);
    for byte in string {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            first_code <<= 1;
            bits += 1;
            let codes = *CODES_OF_LENGTH.get(bits).ok_or(Malformed)?;
            if code - first_code < codes {
                symbols += 1;
                (bits, code, first_code) = (0, 0, 0);
            } else {
                first_code += codes;
            }
        }
    }
    // The end is filled up with ones, less than a byte of them.
    let filled = bits < 8 && code == (1 << bits) - 1;
    filled.then_some(symbols).ok_or(Malformed)
}

/// A string of `count` zeros in the Huffman code.
fn push_zeros(count: usize, out: &mut Vec<u8>) {
    let bits = count * ZERO_CODE_BITS;
    let bytes = bits.div_ceil(8);
    push_length(bytes, out);
    out.resize(out.len() + bytes, 0);
    if let Some(last) = out.last_mut() {
        *last = (1 << (bytes * 8 - bits)) - 1;
    }
}

/// The length of a string in the Huffman code: an integer with a prefix of 7 bits.
fn push_length(length: usize, out: &mut Vec<u8>) {
    const PREFIX: usize = 0x7f;
    let low = |value: usize| u8::try_from(value & 0x7f).unwrap_or(0);
    if length < PREFIX {
        out.push(HUFFMAN | low(length));
        return;
    }
    out.push(HUFFMAN | 0x7f);
    let mut rest = length - PREFIX;
    while rest > 0x7f {
        out.push(0x80 | low(rest));
        rest >>= 7;
    }
    out.push(low(rest));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// "www.example.com" of RFC 7541, appendix C.4.1.
    const EXAMPLE: &[u8] = &[
        0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
    ];

    #[test]
    fn the_code_is_complete() {
        let used: u32 = (1..31).map(|bits| CODES_OF_LENGTH[bits] << (30 - bits)).sum();
        assert_eq!(used, (1 << 30) - 1);
        assert_eq!(CODES_OF_LENGTH.iter().sum::<u32>(), 256);
    }

    #[test]
    fn symbols_are_counted_without_being_known() {
        assert_eq!(decoded_length(EXAMPLE), Ok(15));
        assert_eq!(decoded_length(AUTHORITY_HUFFMAN), Ok(AUTHORITY.len()));
        assert_eq!(decoded_length(&[]), Ok(0));
        assert_eq!(decoded_length(&[0xff]), Err(Malformed), "a whole byte of filling");
        assert_eq!(
            decoded_length(&[0xff; 4]),
            Err(Malformed),
            "the end-of-string symbol"
        );
        assert_eq!(decoded_length(&[0x00]), Err(Malformed), "filled with zeros");
    }

    #[test]
    fn a_value_is_replaced_by_one_of_its_length_and_all_else_stays() {
        let mut block = vec![0x83, 0x41, 0x8c];
        block.extend_from_slice(EXAMPLE);
        block.extend_from_slice(&[0x86, 0xbe]);
        let rewritten = with_plain_authority(&block).unwrap().unwrap();
        let mut expected = vec![0x83, 0x41, 0x8a];
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0x1f]);
        expected.extend_from_slice(&[0x86, 0xbe]);
        assert_eq!(rewritten, expected);
        assert_eq!(decoded_length(&rewritten[3..13]), Ok(15));
    }

    #[test]
    fn the_name_may_be_spelled_out_in_either_way() {
        for (length, name) in [(10, AUTHORITY), (0x88, AUTHORITY_HUFFMAN)] {
            for kind in [0x40, 0x00, 0x10] {
                let block = [&[kind, length][..], name, b"\x06/x.y/z"].concat();
                let rewritten = with_plain_authority(&block).unwrap().unwrap();
                let expected = [&[kind, length][..], name, &[0x84, 0, 0, 0, 0x3]].concat();
                assert_eq!(rewritten, expected);
            }
        }
    }

    #[test]
    fn an_empty_value_goes_unless_a_table_knows_it() {
        assert_eq!(
            with_plain_authority(&[0x83, 0x81, 0x86]),
            Ok(Some(vec![0x83, 0x86]))
        );
        assert_eq!(with_plain_authority(&[0x83, 0x01, 0x00]), Ok(Some(vec![0x83])));
        assert_eq!(
            with_plain_authority(&[0x83, 0x41, 0x00, 0x86]),
            Ok(Some(vec![0x83, 0x41, 0x81, 0x07, 0x86]))
        );
    }

    #[test]
    fn what_is_no_block_is_said_to_be_none() {
        let lengths = [0x41, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        for block in [&[0x80][..], &[0x41], &[0x41, 0x05, b'a'], &[0x3f], &lengths] {
            assert_eq!(with_plain_authority(block), Err(Malformed), "{block:x?}");
        }
    }

    proptest! {
        #[test]
        fn no_block_panics_or_grows_much(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(rewritten)) = with_plain_authority(&block) {
                prop_assert!(rewritten.len() <= block.len() * 2);
            }
        }

        #[test]
        fn any_length_keeps_its_length(value in "[ -~]{1,3000}") {
            let mut block = vec![0x01];
            let mut rest = value.len();
            if rest < 0x7f { block.push(u8::try_from(rest).unwrap()); } else {
                block.push(0x7f);
                rest -= 0x7f;
                while rest > 0x7f { block.push(0x80 | u8::try_from(rest & 0x7f).unwrap()); rest >>= 7; }
                block.push(u8::try_from(rest).unwrap());
            }
            block.extend_from_slice(value.as_bytes());
            let rewritten = with_plain_authority(&block).unwrap().unwrap();
            let mut reader = Reader { rest: &rewritten[1..] };
            let (huffman, string) = reader.string().unwrap();
            prop_assert!(huffman && reader.rest.is_empty());
            prop_assert_eq!(decoded_length(string), Ok(value.len()));
        }
    }
}
