// SPDX-License-Identifier: GPL-2.0-only
//! A snapshot is a folder with two files: `memory`, which is the slot's memory from first to last,
//! with a page behind it that says to which state it belongs, and `state`. The state is written
//! last, under its name only when all is on the disk: where it is, the snapshot is complete.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::layout::{BLOCK_PAGES, page_size};
use crate::memory::Memory;
use crate::state::State;

/// Writes a snapshot, or leaves none.
pub fn write(folder: &Path, memory: &Memory, state: &State) -> Result<()> {
    fs::create_dir_all(folder).context(format!("creating {}", folder.display()))?;
    let path = folder.join("state");
    ensure!(!path.exists(), "{} is there already", path.display());
    let result = write_files(folder, memory, state)
        .with_context(|| format!("writing the snapshot {}", folder.display()));
    if result.is_err() {
        for name in ["memory", "state.new"] {
            let _ = fs::remove_file(folder.join(name));
        }
    }
    result
}

fn write_files(folder: &Path, memory: &Memory, state: &State) -> Result<()> {
    let file = File::create(folder.join("memory"))?;
    let pages = memory.config().pages();
    for first in (0..pages).step_by(BLOCK_PAGES) {
        let mut content = vec![0; BLOCK_PAGES.min(pages - first) * page_size()];
        memory.read(first, &mut content)?;
        file.write_all_at(&content, (first * page_size()) as u64)?;
    }
    let mut last = vec![0; page_size()];
    last[..8].copy_from_slice(&state.identity.to_le_bytes());
    file.write_all_at(&last, (pages * page_size()) as u64)?;
    file.sync_all()?;

    let new = folder.join("state.new");
    let mut file = File::create(&new)?;
    file.write_all(&state.encode())?;
    file.sync_all()?;
    fs::rename(&new, folder.join("state"))?;
    Ok(())
}

/// Opens a snapshot, and refuses one that is not whole.
pub fn open(folder: &Path) -> Result<(State, File)> {
    open_files(folder).with_context(|| format!("opening the snapshot {}", folder.display()))
}

fn open_files(folder: &Path) -> Result<(State, File)> {
    let state = State::decode(&fs::read(folder.join("state")).context("its state")?)?;
    let file = File::open(folder.join("memory")).context("its memory")?;
    let have = file.metadata()?.len();
    let slot = state.config.slot_bytes();
    let want = (slot + page_size()) as u64;
    ensure!(
        have == want,
        "its memory has {have} bytes of {want}: it is truncated, or of another machine"
    );
    let mut identity = [0; 8];
    file.read_exact_at(&mut identity, slot as u64)?;
    ensure!(
        u64::from_le_bytes(identity) == state.identity,
        "its memory does not belong to the state beside it"
    );
    Ok((state, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Backing;
    use crate::state::tests::example;
    use vmm_sys_util::tempdir::TempDir;

    fn snapshot() -> TempDir {
        let folder = TempDir::new().unwrap();
        let memory = Memory::new(example().config, Backing::Anonymous).unwrap();
        memory.write(5, b"content").unwrap();
        write(folder.as_path(), &memory, &example()).unwrap();
        folder
    }

    #[test]
    fn snapshot_comes_back() {
        let folder = snapshot();
        let (state, memory) = open(folder.as_path()).unwrap();
        assert_eq!(state, example());
        let mut content = [0; 7];
        memory.read_exact_at(&mut content, 5 * page_size() as u64).unwrap();
        assert_eq!(&content, b"content");
    }

    fn refused(change: impl FnOnce(&Path)) -> String {
        let folder = snapshot();
        change(folder.as_path());
        format!("{:#}", open(folder.as_path()).unwrap_err())
    }

    #[test]
    fn damaged_snapshots_are_refused() {
        let truncate = |name: &'static str| {
            move |folder: &Path| {
                let file = File::options().write(true).open(folder.join(name)).unwrap();
                file.set_len(file.metadata().unwrap().len() - 1).unwrap();
            }
        };
        assert!(refused(truncate("memory")).contains("truncated"));
        assert!(refused(truncate("state")).contains("checksum"));
        assert!(
            refused(|folder| fs::remove_file(folder.join("state")).unwrap())
                .contains("No such file")
        );
        assert!(
            refused(|folder| fs::write(folder.join("state"), b"something").unwrap())
                .contains("no state")
        );
        let foreign = |folder: &Path| {
            let state = State { identity: 8, ..example() };
            fs::write(folder.join("state"), state.encode()).unwrap();
        };
        assert!(refused(foreign).contains("does not belong"));
    }

    #[test]
    fn snapshot_is_not_overwritten() {
        let folder = snapshot();
        let memory = Memory::new(example().config, Backing::Anonymous).unwrap();
        let error = write(folder.as_path(), &memory, &example()).unwrap_err();
        assert!(format!("{error:#}").contains("is there already"));
        open(folder.as_path()).unwrap();
    }

    #[test]
    fn snapshot_that_cannot_be_written_leaves_nothing() {
        let folder = TempDir::new().unwrap();
        let memory = Memory::new(example().config, Backing::Anonymous).unwrap();
        // A folder stands in for a disk that is full at the end.
        fs::create_dir(folder.as_path().join("state.new")).unwrap();
        write(folder.as_path(), &memory, &example()).unwrap_err();
        assert!(!folder.as_path().join("memory").exists());
        assert!(!folder.as_path().join("state").exists());
    }
}
