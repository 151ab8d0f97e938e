//! What the disk and the network of this machine allow for bytes: a file that is
//! copied and flushed, the same file through one TCP connection, small files
//! that are flushed one by one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Read and written at once on both sides of the connection.
const PIECE: usize = 256 * 1024;

/// How long it takes to copy `from` to the new file `to` and to flush that. The
/// copy stays: memory that a removed file gives back is faster to write to
/// than new memory, which is what blobs that stay get.
///
/// # Errors
/// What the system says.
pub fn copy(from: &Path, to: &Path) -> io::Result<Duration> {
    let began = Instant::now();
    io::copy(&mut File::open(from)?, &mut File::create_new(to)?)?;
    File::open(to)?.sync_all()?;
    Ok(began.elapsed())
}

/// How long it takes to read `file` on one thread, send it through a TCP
/// connection of this machine, and take it from there on another.
///
/// # Errors
/// What the system says, or if bytes are missing.
pub fn through_tcp(file: &Path) -> io::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    let began = Instant::now();
    let received = std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut piece = vec![0; PIECE];
            loop {
                match file.read(&mut piece)? {
                    0 => return Ok(()),
                    read => stream.write_all(&piece[..read])?,
                }
            }
        });
        let mut stream = TcpStream::connect(address)?;
        let mut piece = vec![0; PIECE];
        let mut received = 0;
        loop {
            match stream.read(&mut piece)? {
                0 => break,
                read => received += read as u64,
            }
        }
        sender.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the floor has panicked")))?;
        io::Result::Ok(received)
    })?;
    let took = began.elapsed();
    if received == length { Ok(took) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// How many files of `length` bytes can be made, written and flushed in a second,
/// one after the other, if one does so for the time `during`. They stay in `dir`,
/// which must not be there yet.
///
/// # Errors
/// What the system says.
pub fn synced_files(dir: &Path, length: usize, during: Duration) -> io::Result<f64> {
    fs::create_dir(dir)?;
    let bytes = vec![0x5a; length];
    let began = Instant::now();
    let mut count = 0u32;
    while began.elapsed() < during || count == 0 {
        let mut file = File::create_new(dir.join(format!("{count:08}")))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_are_moved() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, vec![7; 3 * PIECE + 1]).unwrap();
        let to = dir.path().join("copy");
        assert!(copy(&file, &to).unwrap() > Duration::ZERO);
        assert_eq!(fs::read(&to).unwrap(), fs::read(&file).unwrap());
        assert!(copy(&file, &to).is_err(), "a floor that finds its file made would do less work");
        assert!(through_tcp(&file).unwrap() > Duration::ZERO);
        let small = dir.path().join("small");
        assert!(synced_files(&small, 10, Duration::ZERO).unwrap() > 0.0);
        assert_eq!(fs::read(small.join("00000000")).unwrap().len(), 10);
        assert!(synced_files(&small, 10, Duration::ZERO).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
