use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;

/// What goes into a zip: name, mode with kind, content. The names are taken as they are.
type Entry<'a> = (&'a str, u32, &'a [u8]);

const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const LIMIT: u64 = 1 << 20;

fn zip_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut writer = ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, mode, content) in entries {
        let options = SimpleFileOptions::default().unix_permissions(*mode & 0o7777);
        if mode & 0o170_000 == LINK & 0o170_000 {
            writer.add_symlink(*name, std::str::from_utf8(content).unwrap(), options).unwrap();
        } else if name.ends_with('/') {
            writer.add_directory(*name, options).unwrap();
        } else {
            writer.start_file(*name, options).unwrap();
            writer.write_all(content).unwrap();
        }
    }
    writer.finish().unwrap().into_inner()
}

/// The zip with every `from` in its bytes made `to`, as long: writers do not make what is evil.
fn forged(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

/// Unpacks into `outer/package` of a new directory.
fn unpacked(bytes: &[u8], limit: u64) -> (tempfile::TempDir, Result<(), UnpackError>) {
    let dir = tempfile::tempdir().unwrap();
    let zip = dir.path().join("zip");
    std::fs::write(&zip, bytes).unwrap();
    std::fs::create_dir(dir.path().join("outer")).unwrap();
    let result = unpack(&zip, &dir.path().join("outer/package"), limit, &CancellationToken::new());
    (dir, result)
}

fn refusal(bytes: &[u8]) -> String {
    let (dir, result) = unpacked(bytes, LIMIT);
    let refusal = result.unwrap_err().to_string();
    let mut outside: Vec<_> =
        std::fs::read_dir(dir.path().join("outer")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    outside.retain(|name| name != "package");
    assert!(outside.is_empty(), "{refusal}: {outside:?} was written");
    assert!(!dir.path().join("evil").exists());
    refusal
}

#[test]
fn a_good_zip_becomes_what_it_was() {
    let bytes = zip_of(&[
        ("bin/", 0o700, b""),
        ("bin/run", 0o100_700, b"#!/bin/sh\n"),
        ("lib/deep/data", FILE, &[7; 100_000]),
        ("lib/latest", LINK, b"deep/data"),
        ("bin/data", LINK, b"../lib/latest"),
    ]);
    let (dir, result) = unpacked(&bytes, LIMIT);
    result.unwrap();
    let package = dir.path().join("outer/package");
    let mode = |name: &str| std::fs::metadata(package.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(""), mode("bin"), mode("bin/run"), mode("lib/deep/data")), (0o755, 0o755, 0o755, 0o644));
    assert_eq!(std::fs::read(package.join("bin/data")).unwrap(), [7; 100_000]);
    assert_eq!(std::fs::read_link(package.join("lib/latest")).unwrap(), Path::new("deep/data"));
}

#[test]
fn names_do_not_lead_out() {
    let file = |name| zip_of(&[(name, FILE, b"x")]);
    for bytes in [
        forged(file("AA/evil"), "AA/evil", "../evil"),
        forged(file("a/AA/AA/evil"), "AA/AA", "../.."),
        forged(file("Xtmp/evil"), "Xtmp", "/tmp"),
        forged(file("AAXevil"), "AAXevil", "..\\evil"),
    ] {
        assert!(refusal(&bytes).contains("the zip is refused: entry"), "{}", refusal(&bytes));
    }
}

#[test]
fn links_do_not_lead_out() {
    for (name, to) in [("a", "/etc"), ("a", ".."), ("d/a", "../../evil"), ("a", "d/../../x")] {
        let bytes = zip_of(&[("d/x", FILE, b"x"), (name, LINK, to.as_bytes())]);
        assert!(refusal(&bytes).contains("leads out of the package"), "{name} -> {to}");
    }
    // A link and a file below it, in both orders; and a link in the place of a file.
    let through = zip_of(&[("a", LINK, b"."), ("a/evil", FILE, b"x")]);
    assert!(refusal(&through).contains("twice"), "{}", refusal(&through));
    let through = zip_of(&[("a/evil", FILE, b"x"), ("a", LINK, b".")]);
    assert!(refusal(&through).contains("twice"), "{}", refusal(&through));
    let twice = forged(zip_of(&[("AAAA", FILE, b"x"), ("BBBB", LINK, b"c")]), "BBBB", "AAAA");
    // The reader may keep one of two entries of a name; both would be too many.
    let (dir, result) = unpacked(&twice, LIMIT);
    assert!(result.is_err() || dir.path().join("outer/package/AAAA").symlink_metadata().is_ok());
}

#[test]
fn what_is_larger_than_it_may_be_is_not_written() {
    let zeros = vec![0; 3 << 20];
    let (dir, result) = unpacked(&zip_of(&[("a", FILE, &zeros)]), LIMIT);
    assert!(matches!(result, Err(UnpackError::Refused(Refused::TooLarge(LIMIT)))), "{result:?}");
    assert!(std::fs::metadata(dir.path().join("outer/package/a")).unwrap().len() <= LIMIT);
    // The sizes that a zip tells are not believed: here its directory says one byte.
    let honest = zip_of(&[("a", FILE, &zeros)]);
    let mut lying = honest.clone();
    let size = (3u32 << 20).to_le_bytes();
    for at in 0..lying.len() - 4 {
        if lying[at..at + 4] == size {
            lying[at..at + 4].copy_from_slice(&1u32.to_le_bytes());
        }
    }
    assert_ne!(lying, honest);
    let (dir, result) = unpacked(&lying, LIMIT);
    let written = std::fs::metadata(dir.path().join("outer/package/a")).map_or(0, |found| found.len());
    assert!(result.is_err() && written <= LIMIT, "{result:?}, {written} bytes");
}

#[test]
fn damaged_and_foreign_files_are_told() {
    let good = zip_of(&[("a", FILE, b"some content that is long enough to be damaged")]);
    assert!(refusal(b"not a zip at all").contains("no zip"));
    assert!(refusal(&good[..good.len() - 30]).contains("no zip"));
    let mut writer = ZipWriter::new(io::Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    writer.start_file("a", stored).unwrap();
    writer.write_all(b"stored as it is").unwrap();
    let wrong_sum = forged(writer.finish().unwrap().into_inner(), "stored as", "stolen as");
    assert!(refusal(&wrong_sum).contains("cannot be read"), "{}", refusal(&wrong_sum));
}

#[test]
fn a_stop_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let zip = dir.path().join("zip");
    std::fs::write(&zip, zip_of(&[("a", FILE, b"x")])).unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    assert!(matches!(unpack(&zip, &dir.path().join("p"), LIMIT, &stop), Err(UnpackError::Stopped)));
}

proptest! {
    /// Links of any package, made as they are allowed, lead nowhere else, also one through the other.
    #[test]
    fn allowed_links_never_leave(links in proptest::collection::vec(("[ab]{1}(/[ab]{1}){0,3}", "[ab./]{1,12}"), 1..8)) {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().canonicalize().unwrap().join("outer/package");
        std::fs::create_dir_all(&base).unwrap();
        let mut made = Vec::new();
        for (entry, to) in links {
            let entry = packages::target(&entry).unwrap().unwrap();
            if packages::check_link(&entry, &to).is_err() {
                continue;
            }
            let path = base.join(&entry);
            // As when unpacking: parents are directories, and nothing is written through a link.
            let real = path.ancestors().skip(1).take_while(|up| up.starts_with(&base)).all(|up| !up.is_symlink());
            if real && std::fs::create_dir_all(path.parent().unwrap()).is_ok() && symlink(&to, &path).is_ok() {
                made.push(path);
            }
        }
        for path in made {
            if let Ok(leads) = path.canonicalize() {
                prop_assert!(leads.starts_with(&base), "{} leads to {}", path.display(), leads.display());
            }
        }
    }
}
