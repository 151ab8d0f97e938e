//! The process groups that run now and the end of the lease, for the guard's eyes.
//!
//! A table in memory that has a file descriptor (memfd): the agent writes each group into a
//! place of its own, the guard reads all of them when the agent is gone, or has not
//! done what it must at the end of its lease. Nobody
//! is woken and nothing is queued, however many processes come and go.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Groups beyond these are found by the markers of their processes alone.
const PLACES: u16 = 4096;
/// Each place holds one number.
const WIDTH: usize = size_of::<i32>();
/// Before the places: when the lease is over, in microseconds since the machine was started.
const HEAD: usize = size_of::<u64>();

/// What the agent has written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// When the lease is over; none before the first.
    pub lease_end: Option<Duration>,
    /// Process groups.
    pub groups: HashSet<i32>,
}

/// See the module.
#[derive(Debug)]
pub struct Groups {
    /// Absent if the system gave none: then the guard goes by markers.
    file: Option<File>,
    places: Mutex<Places>,
}

/// Which places are free: those that were given back, and all that were never used.
#[derive(Debug, Default)]
struct Places {
    returned: Vec<u16>,
    unused: u16,
}

/// Where a group is written; without one the table was full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(Option<u16>);

impl Groups {
    /// An empty table.
    pub fn create() -> Self {
        let file = memfd_create("groups", MFdFlags::MFD_CLOEXEC).map(File::from);
        if let Err(error) = &file {
            tracing::warn!(%error, "the guard cannot be told of process groups; it goes by markers alone");
        }
        Self { file: file.ok(), places: Mutex::default() }
    }

    /// Where another process of this user can read the table while this one lives.
    pub fn path(&self) -> Option<String> {
        self.file.as_ref().map(|file| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
    }

    /// The group exists from now on.
    pub fn began(&self, group: i32) -> Place {
        let place = {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            places.returned.pop().or_else(|| {
                let next = places.unused;
                places.unused = (next + 1).min(PLACES);
                (next < PLACES).then_some(next)
            })
        };
        self.write(place, group);
        Place(place)
    }

    /// Nothing of the group is left.
    pub fn ended(&self, Place(place): Place) {
        self.write(place, 0);
        if let Some(place) = place {
            self.places.lock().unwrap_or_else(PoisonError::into_inner).returned.push(place);
        }
    }

    /// The lease is valid until then.
    pub fn lease(&self, end: Duration) {
        self.write_at(0, &u64::try_from(end.as_micros()).unwrap_or(u64::MAX).to_le_bytes());
    }

    fn write(&self, place: Option<u16>, group: i32) {
        if let Some(place) = place {
            self.write_at(HEAD as u64 + u64::from(place) * WIDTH as u64, &group.to_le_bytes());
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) {
        if let Some(file) = &self.file
            && let Err(error) = file.write_all_at(bytes, offset)
        {
            tracing::debug!(%error, "the guard could not be told of a process group or a lease");
        }
    }
}

/// What stands in the table, from its beginning.
///
/// # Errors
/// As the system says.
pub fn read(file: &File) -> std::io::Result<Told> {
    let mut bytes = vec![0; HEAD + usize::from(PLACES) * WIDTH];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    let Some((head, places)) = bytes[..length].split_first_chunk::<HEAD>() else { return Ok(Told::default()) };
    let lease_end = Some(u64::from_le_bytes(*head)).filter(|end| *end > 0).map(Duration::from_micros);
    let (numbers, _) = places.as_chunks::<WIDTH>();
    let groups = numbers.iter().map(|bytes| i32::from_le_bytes(*bytes)).filter(|group| *group > 1).collect();
    Ok(Told { lease_end, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_reader_sees_the_groups_of_this_moment() {
        let groups = Groups::create();
        let path = groups.path().unwrap();
        let now = || read(&File::open(&path).unwrap()).unwrap().groups;
        assert_eq!(now(), HashSet::new());
        let first = groups.began(100);
        let second = groups.began(200);
        assert_eq!(now(), HashSet::from([100, 200]));
        groups.ended(first);
        let third = groups.began(300);
        assert_eq!(first, third, "places are used again");
        assert_eq!(now(), HashSet::from([200, 300]));
        groups.ended(second);
        groups.ended(third);
        assert_eq!(now(), HashSet::new());
        let end = Duration::from_micros(1_234_567);
        groups.lease(end);
        let told = read(&File::open(&path).unwrap()).unwrap();
        assert_eq!(told, Told { lease_end: Some(end), groups: HashSet::new() });
    }

    #[test]
    fn a_full_table_takes_no_more_and_forgets_nothing() {
        let groups = Groups::create();
        let places: Vec<Place> = (0..i32::from(PLACES) + 3).map(|number| groups.began(number + 2)).collect();
        let read = read(&File::open(groups.path().unwrap()).unwrap()).unwrap().groups;
        assert_eq!(read.len(), usize::from(PLACES));
        assert_eq!(places.iter().filter(|place| place.0.is_none()).count(), 3);
        for place in places {
            groups.ended(place);
        }
    }
}
