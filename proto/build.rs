//! Compiles `kiln/**/*.proto` with protox, so that no protoc has to be installed.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=kiln");
    let mut files = Vec::new();
    collect(Path::new("kiln"), &mut files)?;
    files.sort();

    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    fs::write(out.join("kiln.fds"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .bytes(".kiln.storage.v1.UploadPackageRequest")
        .bytes(".kiln.storage.v1.UploadRequest")
        .bytes(".kiln.storage.v1.DownloadResponse")
        .bytes(".kiln.pool.v1.FileAnswer")
        .bytes(".kiln.pool.v1.ReadNodeFileResponse")
        .bytes(".kiln.gateway.v1.ReadTaskFileResponse")
        .compile_fds(descriptors)?;
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
