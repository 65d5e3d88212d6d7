//! Why a SPDY connection cannot go on.

/// What the peer sent that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpdyError {
    /// Another version of the protocol.
    #[error("a SPDY frame of version {0}, not 3")]
    Version(u16),
    /// A control frame that is longer than any that we take.
    #[error("a SPDY control frame of kind {kind} with {length} bytes")]
    TooLong { kind: u16, length: usize },
    /// A control frame whose length does not fit its kind.
    #[error("a SPDY control frame of kind {kind} with {length} bytes, which is not its length")]
    Length { kind: u16, length: usize },
    /// A header block that does not inflate, or is not what it says.
    #[error("a SPDY header block {0}")]
    Headers(&'static str),
    /// A stream id that is not the client's to give, or not newer than those before.
    #[error("a new SPDY stream with the id {0}")]
    StreamId(u32),
    /// A window that no one may open so far.
    #[error("a SPDY window update of {delta} for stream {stream}")]
    Window { stream: u32, delta: u32 },
    /// The peer opens and breaks streams faster than it reads what we say of them.
    #[error("more than {0} answers that the client does not read")]
    Flood(usize),
}
