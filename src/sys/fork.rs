//! A value that belongs to one process, and that a forked child does not inherit.
//!
//! A forked child has a copy of all memory and shares every open file description: a lease that
//! it drops would unlock its *parent's* lock. So every verb asks first whether it runs in the
//! process that made the space. `getpid` would be a system call on the path that must have none,
//! and `pthread_atfork` misses a bare `clone`. A page marked `MADV_WIPEONFORK` misses nothing:
//! the kernel hands the child a page of zeros, and to ask costs one load.
//!
//! # References
//! - `madvise(2)`, `MADV_WIPEONFORK` (Linux 4.14)

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

const PAGE: usize = 4096;

/// Holds one `T` for each process that asks, made on first use. It is never freed: a pointer to
/// it must not come to mean another process's value.
pub(crate) struct PerProcess<T: 'static> {
    /// The page, once mapped. Its first word points to this process's value; in a forked child
    /// that word is null.
    page: AtomicPtr<AtomicPtr<T>>,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { page: AtomicPtr::new(ptr::null_mut()) }
    }

    /// This process's value, made by `make` if there is none yet.
    ///
    /// # Errors
    /// Those of `mmap` and `madvise`, on first use.
    pub(crate) fn get_or_make(&self, make: impl FnOnce() -> T) -> io::Result<&'static T> {
        let word = match self.word() {
            Some(word) => word,
            None => self.map_page()?,
        };
        let mut value = word.load(Ordering::Acquire);
        if value.is_null() {
            let made = Box::into_raw(Box::new(make()));
            match word.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => value = made,
                Err(theirs) => {
                    // SAFETY: `made` comes from `Box::into_raw` above and was shown to nobody.
                    drop(unsafe { Box::from_raw(made) });
                    value = theirs;
                }
            }
        }
        // SAFETY: the word holds null or a pointer from `Box::into_raw` that is never freed, in
        // this process (the kernel wipes it in a child) or, after `fork`, in its copy.
        Ok(unsafe { &*value })
    }

    /// Whether `value` is this process's own, not one that a parent left in our memory.
    pub(crate) fn is_current(&self, value: &'static T) -> bool {
        self.word().is_some_and(|word| ptr::eq(word.load(Ordering::Relaxed), value))
    }

    fn word(&self) -> Option<&'static AtomicPtr<T>> {
        // SAFETY: null, or a page that was mapped below and is never unmapped; an atomic may be
        // shared; zeros are a valid (null) `AtomicPtr`.
        unsafe { self.page.load(Ordering::Acquire).as_ref() }
    }

    fn map_page(&self) -> io::Result<&'static AtomicPtr<T>> {
        // SAFETY: a new private mapping, at an address that the kernel chooses.
        let page = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        // SAFETY: the advice concerns the page that we have just mapped, and nothing is in it.
        let advised = unsafe { madvise(page, PAGE, Advice::LinuxWipeOnFork) };
        let mine = page.cast::<AtomicPtr<T>>();
        let kept = advised.map(|()| {
            let was = ptr::null_mut();
            let order = (Ordering::AcqRel, Ordering::Acquire);
            self.page.compare_exchange(was, mine, order.0, order.1).is_ok()
        });
        if !matches!(kept, Ok(true)) {
            // SAFETY: the page was mapped above and shown to nobody.
            let _ = unsafe { munmap(page, PAGE) };
        }
        kept?;
        Ok(self.word().expect("a page was put there, by us or by who was first"))
    }
}
