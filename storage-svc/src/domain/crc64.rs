//! CRC-64/NVME, the checksum of `x-ms-content-crc64`.

const POLYNOMIAL: u64 = 0x9A6C_9329_AC4B_C9B5;

static TABLE: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
}

/// A checksum in the making.
#[derive(Debug, Clone, Copy)]
pub struct Crc64(u64);

impl Default for Crc64 {
    fn default() -> Self {
        Self(u64::MAX)
    }
}

impl Crc64 {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = TABLE[((self.0 ^ u64::from(*byte)) & 0xff) as usize] ^ (self.0 >> 8);
        }
    }

    /// In the order of the header.
    pub fn finish(self) -> [u8; 8] {
        (!self.0).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;

    #[test]
    fn known_values() {
        let mut crc = Crc64::default();
        crc.update(b"123456789");
        assert_eq!(crc.finish(), 0xAE8B_1486_0A79_9888_u64.to_le_bytes());
        let mut crc = Crc64::default();
        crc.update(b"a");
        crc.update(b"bc");
        assert_eq!(base64::prelude::BASE64_STANDARD.encode(crc.finish()), "6/rBP7vK5QU=");
    }
}
