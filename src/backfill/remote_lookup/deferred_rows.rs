//! Stores observations whose trace is on none of the loaded days. They wait in files, as the blocks
//! they arrived in, until their traces have been looked up in all of ClickHouse. That way each is
//! read from ClickHouse once, and traces are looked up many at a time.
//!
//! A segment's file gets its name once complete and on disk, before the segment counts as done.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::backfill::error::WorkError;
use crate::error::Advice;
use crate::native::Block;
use crate::state::counts::DeferredCounts;

/// The directory of these files.
#[derive(Debug, Clone)]
pub(crate) struct DeferredRows {
    directory: PathBuf,
}

impl DeferredRows {
    /// Uses `directory`, which need not exist.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, segment: u32) -> PathBuf {
        self.directory.join(format!("segment-{segment}.native"))
    }

    /// Writes a segment's file, replacing any existing one.
    pub(crate) fn writer(&self, segment: u32) -> DeferredWriter {
        DeferredWriter {
            directory: self.directory.clone(),
            path: self.path(segment),
            file: None,
            counts: DeferredCounts::default(),
        }
    }

    /// Reads a segment's file, which must have `bytes` bytes.
    ///
    /// # Errors
    /// [`WorkError::File`] if it cannot be read or has another size.
    pub(crate) fn reader(&self, segment: u32, bytes: u64) -> Result<DeferredReader, WorkError> {
        let path = self.path(segment);
        let open = || {
            let file = File::open(&path)?;
            match file.metadata()?.len() {
                length if length == bytes => Ok(file),
                length => Err(std::io::Error::other(format!(
                    "it has {length} bytes instead of {bytes}"
                ))),
            }
        };
        let file = open().map_err(|error| WorkError::File {
            path: path.clone(),
            message: error.to_string(),
            advice: Some(Advice::Restart),
        })?;
        Ok(DeferredReader { path, file })
    }

    /// Deletes a segment's file.
    pub(crate) fn remove(&self, segment: u32) {
        // Leftovers are deleted with the whole directory.
        let _ = std::fs::remove_file(self.path(segment));
    }
}

/// Writes a segment's file. Creates none if there are no rows.
pub(crate) struct DeferredWriter {
    directory: PathBuf,
    path: PathBuf,
    file: Option<tempfile::NamedTempFile>,
    counts: DeferredCounts,
}

impl DeferredWriter {
    /// Adds a block.
    ///
    /// # Errors
    /// [`WorkError::File`] if the file cannot be written, for example on a full disk.
    pub(crate) fn push(&mut self, block: &Block) -> Result<(), WorkError> {
        self.write(block)
            .map_err(|error| WorkError::file(&self.path, &error))?;
        self.counts.rows += block.rows as u64;
        self.counts.bytes += block.bytes.len() as u64;
        Ok(())
    }

    fn write(&mut self, block: &Block) -> std::io::Result<()> {
        if self.file.is_none() {
            std::fs::create_dir_all(&self.directory)?;
            self.file = Some(tempfile::NamedTempFile::new_in(&self.directory)?);
        }
        match &mut self.file {
            Some(file) => file.write_all(&block.bytes),
            None => Ok(()),
        }
    }

    /// Syncs the file to disk, then gives it its name.
    ///
    /// # Errors
    /// [`WorkError::File`] if the file cannot be written, for example on a full disk.
    pub(crate) fn finish(self) -> Result<DeferredCounts, WorkError> {
        let Some(file) = self.file else {
            return Ok(self.counts);
        };
        keep(file, &self.path, &self.directory)
            .map_err(|error| WorkError::file(&self.path, &error))?;
        Ok(self.counts)
    }
}

fn keep(file: tempfile::NamedTempFile, path: &Path, directory: &Path) -> std::io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// Reads a segment's file.
pub(crate) struct DeferredReader {
    path: PathBuf,
    file: File,
}

/// Bytes per read.
const CHUNK_BYTES: usize = 256 * 1024;

impl DeferredReader {
    /// The next bytes, or `None` at the end.
    ///
    /// # Errors
    /// [`WorkError::File`] if the file cannot be read.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<bytes::Bytes>, WorkError> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let length = self
            .file
            .read(&mut chunk)
            .map_err(|error| WorkError::file(&self.path, &error))?;
        chunk.truncate(length);
        Ok((length > 0).then(|| chunk.into()))
    }
}
