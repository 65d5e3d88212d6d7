//! The keyboard controller, of which a pod needs one thing: the line that resets the machine (reboot=k).

const DATA_PORT: u16 = 0x60;
const COMMAND_PORT: u16 = 0x64;
/// Pulse output line 0, which is wired to the processor's reset.
const COMMAND_RESET: u8 = 0xFE;

/// It has no state.
#[derive(Debug)]
pub(crate) struct I8042;

impl I8042 {
    /// Reads as idle and empty, so that the kernel does not wait for it before it resets.
    pub(crate) fn read(port: u16, data: &mut [u8]) -> bool {
        let ours = matches!(port, DATA_PORT | COMMAND_PORT);
        if ours {
            data.fill(0);
        }
        ours
    }

    /// Whether this write resets the machine.
    pub(crate) fn resets(port: u16, data: &[u8]) -> bool {
        port == COMMAND_PORT && data == [COMMAND_RESET]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        assert!(I8042::resets(0x64, &[0xFE]));
        assert!(!I8042::resets(0x64, &[0xD1]));
        assert!(!I8042::resets(0x60, &[0xFE]));
        assert!(!I8042::resets(0x64, &[0xFE, 0]));
    }

    #[test]
    fn the_controller_is_never_busy() {
        let mut data = [0xFF];
        assert!(I8042::read(0x64, &mut data));
        assert_eq!(data, [0]);
        assert!(!I8042::read(0x61, &mut data));
    }
}
