//! Small files that survive a power cut.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// A file system, step by step.
pub trait Files {
    /// A whole file.
    ///
    /// # Errors
    /// The file system's.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Makes or overwrites a file that its owner alone may read; not durable yet.
    ///
    /// # Errors
    /// The file system's.
    fn write(&self, path: &Path, contents: &[u8]) -> io::Result<()>;

    /// Makes a file's contents durable.
    ///
    /// # Errors
    /// The file system's.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// Puts a file in another's place; not durable yet.
    ///
    /// # Errors
    /// The file system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes a file's name durable.
    ///
    /// # Errors
    /// The file system's.
    fn sync_name(&self, path: &Path) -> io::Result<()>;
}

/// Replaces a file's contents durably: a power cut leaves the old or the new, whole.
///
/// # Errors
/// The file system's.
pub fn replace(files: &impl Files, path: &Path, contents: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    files.write(&part, contents)?;
    files.sync(&part)?;
    files.rename(&part, path)?;
    files.sync_name(path)
}

/// The file system of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn write(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(path)?.write_all(contents)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        fs::OpenOptions::new().write(true).open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_name(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}
