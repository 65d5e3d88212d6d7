//! What the processor and the PC leave to software: CPUID, MSRs, entry registers, the MP table. All pure but the calls
//! that load them into a virtual processor.

pub(crate) mod command_line;
pub(crate) mod compatible;
pub(crate) mod cpuid;
pub(crate) mod mptable;
pub(crate) mod registers;
