//! Reads of a device's configuration, which the driver makes at any offset and width (virtio 1.2, 2.5).

/// Copies what `config` has at `offset`; bytes beyond its end stay as they are.
pub(crate) fn read(config: &[u8], offset: u64, data: &mut [u8]) {
    let Some(rest) = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..))
    else {
        return;
    };
    for (target, source) in data.iter_mut().zip(rest) {
        *target = *source;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_beyond_the_configuration_stay_as_they_are() {
        let mut data = [0xff; 4];
        super::read(&[1, 2, 3], 2, &mut data);
        assert_eq!(data, [3, 0xff, 0xff, 0xff]);
        for offset in [3, 4, u64::MAX] {
            super::read(&[1, 2, 3], offset, &mut data);
            assert_eq!(data, [3, 0xff, 0xff, 0xff]);
        }
    }
}
