//! What the machine has and how busy it is, as `/proc` tells.

use std::net::UdpSocket;
use std::path::Path;

use kiln_time::Timestamp;

/// Sizes that do not change.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Processors the agent may use.
    pub cpus: u32,
    /// Main memory.
    pub memory_bytes: u64,
    /// When the machine was started.
    pub boot_time: Timestamp,
    /// Free for users when the agent began, in the file system of its node.
    pub disk_bytes: u64,
    /// Graphics processors.
    pub gpus: u32,
}

impl Machine {
    /// Reads them; `root` is that of the node.
    pub fn read(root: &Path) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
        Self {
            cpus,
            memory_bytes: memory("MemTotal:").unwrap_or(0),
            disk_bytes: disk_free(root),
            gpus: u32::try_from(gpus().len()).unwrap_or(0),
            boot_time: Timestamp::now().minus(crate::clock::since_boot()),
        }
    }
}

/// Numbers of the graphics processors (`/dev/nvidia0` and so on).
pub fn gpus() -> Vec<u32> {
    let devices = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let mut numbers: Vec<u32> =
        devices.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("nvidia")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// How busy the machine is between two questions.
#[derive(Debug, Default)]
pub struct Load {
    last: Option<(u64, u64)>,
}

impl Load {
    /// Part of all processor time that was used since the last call.
    pub fn cpu_fraction(&mut self) -> f64 {
        let Some((busy, total)) = cpu_times() else { return 0.0 };
        let (last_busy, last_total) = self.last.replace((busy, total)).unwrap_or((0, 0));
        let total = total.saturating_sub(last_total);
        if total == 0 { 0.0 } else { busy.saturating_sub(last_busy) as f64 / total as f64 }
    }
}

/// (busy, total) in ticks since the start of the machine.
fn cpu_times() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let values: Vec<u64> =
        text.lines().next()?.split_ascii_whitespace().skip(1).take(8).map_while(|text| text.parse().ok()).collect();
    let total = values.iter().sum();
    // Idle and waiting for disks.
    let idle: u64 = values.iter().skip(3).take(2).sum();
    Some((total - idle, total))
}

/// Main memory that is not available to new programs.
pub fn memory_used() -> u64 {
    memory("MemTotal:").unwrap_or(0).saturating_sub(memory("MemAvailable:").unwrap_or(0))
}

fn memory(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Space that is free for users in the file system of `path`.
pub fn disk_free(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |stat| stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// The address under which other machines most likely see this one: that of the
/// route to `host`. Nothing is sent.
pub fn own_address(host: &str, port: u16) -> String {
    UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| {
            socket.connect((host, port))?;
            socket.local_addr()
        })
        .map_or_else(|_| "127.0.0.1".to_owned(), |address| address.ip().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_tells_plausible_figures() {
        let machine = Machine::read(Path::new("/"));
        assert!(machine.cpus >= 1 && machine.memory_bytes > 1 << 20);
        assert!(memory_used() < machine.memory_bytes);
        assert!(disk_free(Path::new("/")) > 0);
        let mut load = Load::default();
        assert!((0.0..=1.0).contains(&load.cpu_fraction()));
        assert!((0.0..=1.0).contains(&load.cpu_fraction()));
        assert_eq!(own_address("127.0.0.1", 1), "127.0.0.1");
    }
}
