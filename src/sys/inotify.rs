//! inotify: being told that a file was closed, unlinked or renamed.
//!
//! # References
//! - `inotify(7)`

use std::mem::MaybeUninit;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

/// An inotify instance.
#[derive(Debug)]
pub(crate) struct Inotify(OwnedFd);

/// What ended [`Inotify::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Polled {
    /// There are events to read.
    Events,
    /// The time is over, or a signal came.
    Nothing,
    /// The call is refused, by a filter of system calls perhaps, and has not slept.
    Refused,
}

impl Inotify {
    pub(crate) fn new() -> Result<Self, Errno> {
        inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map(Self)
    }

    /// Watches the file that this process has open under this number: that file, whatever becomes
    /// of its name. Returns the kernel's number for the watch, which it never uses again for
    /// another one. The kernel asks the file system whether this process may read the file, so this
    /// can hang.
    pub(crate) fn watch(&self, number: RawFd) -> Result<i32, Errno> {
        let file = super::procfs::path_by_number(number);
        let events = WatchFlags::CLOSE
            | WatchFlags::DELETE_SELF
            | WatchFlags::ATTRIB
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&self.0, file, events)
    }

    /// Ends a watch, and takes all events that are there.
    pub(crate) fn clear(&self, watch: Option<i32>) {
        if let Some(watch) = watch {
            // The file may be gone, and the watch with it.
            let _ = inotify::remove_watch(&self.0, watch);
        }
        self.drain();
    }

    /// Takes all events that are there. What they say does not matter: that something has happened,
    /// or too much of it, is told by there being one, and then the file is looked at.
    pub(crate) fn drain(&self) {
        /// An event has 16 bytes, and less free than that ends a read.
        const FULL: usize = BUFFER - 16;
        const BUFFER: usize = 2048;
        let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER];
        while rustix::io::read(&self.0, &mut buffer).is_ok_and(|(read, _)| read.len() > FULL) {}
    }

    /// Sleeps until there is an event, for so long at most.
    pub(crate) fn poll(&self, timeout: Duration) -> Polled {
        let timeout = Timespec::try_from(timeout).ok();
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut ready, timeout.as_ref()) {
            _ if !ready[0].revents().is_empty() => Polled::Events,
            Ok(_) | Err(Errno::INTR) => Polled::Nothing,
            Err(_) => Polled::Refused,
        }
    }
}

/// Wakes a thread that sleeps in [`Inotify::poll`], by the end of its watch, which is an event too.
#[derive(Debug)]
pub(crate) struct PollWaker {
    inotify: Arc<Inotify>,
    watch: i32,
}

impl PollWaker {
    pub(crate) fn new(inotify: &Arc<Inotify>, watch: i32) -> Self {
        Self { inotify: Arc::clone(inotify), watch }
    }

    pub(crate) fn wake(self) {
        // If there is no such watch any more, that was an event as well.
        let _ = inotify::remove_watch(&self.inotify.0, self.watch);
    }
}
