// SPDX-License-Identifier: GPL-2.0-only
//! A handler in another process. It shares the bitmap, fills pages of the VMM through the VMM's
//! userfaultfd and clears their bits; an exit of a vCPU is a message of eight bytes, and the answer
//! to it. So the snapshot, its decompression or its network are nothing that the VMM has to trust.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use anyhow::{Context, Result, bail};
use userfaultfd::Uffd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::memory::{Fill, Memory};
use crate::pager::Pager;
use crate::snapshot;
use crate::stats::Stats;
use crate::userfault::{Demand, Marks};

/// The VMM's connection to its handler.
pub struct Handler {
    stream: UnixStream,
    stats: Arc<Stats>,
}

impl Handler {
    /// Gives the handler what it needs.
    pub fn connect(
        path: &Path,
        memory: &Memory,
        uffd: &Uffd,
        marks: &Marks,
        stats: Arc<Stats>,
    ) -> Result<Self> {
        let mut stream = connect(path)?;
        let pages = memory.config().pages() as u64;
        for (word, file) in
            [(memory.host_address(), uffd.as_raw_fd()), (pages, marks.file().as_raw_fd())]
        {
            stream.send_with_fd(&word.to_le_bytes()[..], file).context("calling the handler")?;
        }
        match read_word(&mut stream) {
            Ok(0) => Ok(Self { stream, stats }),
            Ok(pages) => bail!("the handler has a snapshot of {pages} pages, which is another"),
            Err(error) => Err(error).context("the handler has gone"),
        }
    }

    /// Waits until the handler has filled all pages.
    pub fn wait(mut self) -> Result<()> {
        for counter in [&self.stats.faults, &self.stats.bytes] {
            let count =
                read_word(&mut self.stream).context("the handler has gone before all is there")?;
            counter.store(count, Ordering::Relaxed);
        }
        // As long as the connection is there, so is the VMM.
        std::mem::forget(self.stream);
        Ok(())
    }
}

/// A vCPU's connection to the handler.
pub struct Requests(UnixStream);

impl Requests {
    pub fn connect(path: &Path) -> Result<Self> {
        Ok(Self(connect(path)?))
    }
}

impl Demand for Requests {
    fn page(&mut self, page: usize) -> Result<()> {
        let gone = || format!("the handler has gone, and page {page} cannot be had");
        self.0.write_all(&(page as u64).to_le_bytes()).context(gone())?;
        read_word(&mut self.0).context(gone())?;
        Ok(())
    }
}

fn connect(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).context(format!("connecting to the handler at {}", path.display()))
}

fn read_word(stream: &mut UnixStream) -> std::io::Result<u64> {
    let mut word = [0; 8];
    stream.read_exact(&mut word)?;
    Ok(u64::from_le_bytes(word))
}

/// The program: serves one VMM with the memory of a snapshot, until the VMM ends.
pub fn serve(folder: &Path, path: &Path) -> Result<()> {
    let (state, memory) = snapshot::open(folder)?;
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).context(format!("listening at {}", path.display()))?;
    eprintln!("vmm: listening for a VMM");
    let (mut vmm, _) = listener.accept().context("waiting for the VMM")?;
    let (base, uffd) = receive(&vmm)?;
    let (pages, marks) = receive(&vmm)?;
    if pages as usize != state.config.pages() {
        let _ = vmm.write_all(&(state.config.pages() as u64).to_le_bytes());
        bail!("the VMM has {pages} pages, the snapshot {}", state.config.pages());
    }
    let pages = pages as usize;
    vmm.write_all(&0u64.to_le_bytes()).context("answering the VMM")?;

    // SAFETY: The descriptor was sent by the VMM for this.
    let uffd = Arc::new(unsafe { Uffd::from_raw_fd(uffd.into_raw_fd()) });
    let marks = Arc::new(Marks::open(marks, pages)?);
    let stats = Arc::new(Stats::default());
    let fill = Fill::Uffd(uffd.clone(), base);
    let pager = Pager::new(pages, Box::new(memory), fill, Some(marks), stats.clone())?;
    let (faults, exits) = (pager.clone(), pager.clone());
    spawn(move || faults.serve(&uffd, base));
    thread::spawn(move || {
        for vcpu in listener.incoming().flatten() {
            let pager = exits.clone();
            spawn(move || answer(vcpu, &pager));
        }
    });
    pager.stream(pages).context("the VMM has gone before all was there")?;
    for counter in [&stats.faults, &stats.bytes] {
        let word = counter.load(Ordering::Relaxed).to_le_bytes();
        vmm.write_all(&word).context("the VMM has gone")?;
    }
    // Until the VMM ends.
    let _ = vmm.read(&mut [0]);
    Ok(())
}

/// Starts a thread whose failure ends the handler: otherwise a vCPU may wait for it for ever.
fn spawn(work: impl FnOnce() -> Result<()> + Send + 'static) {
    thread::spawn(move || {
        if let Err(error) = work() {
            eprintln!("vmm: error: {error:#}");
            process::exit(1);
        }
    });
}

/// Answers the requests of a vCPU, until the VMM ends.
fn answer(mut vcpu: UnixStream, pager: &Pager) -> Result<()> {
    while let Ok(page) = read_word(&mut vcpu) {
        pager.demand(page as usize)?;
        if vcpu.write_all(&0u64.to_le_bytes()).is_err() {
            break;
        }
    }
    Ok(())
}

fn receive(stream: &UnixStream) -> Result<(u64, File)> {
    let mut word = [0; 8];
    match stream.recv_with_fd(&mut word).context("hearing from the VMM")? {
        (8, Some(file)) => Ok((u64::from_le_bytes(word), file)),
        _ => bail!("this is no VMM that calls"),
    }
}
