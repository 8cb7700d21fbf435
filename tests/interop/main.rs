//! Beside other programs that lock files (QEMU, LXC, libvirt), and the test of the file system that
//! hangs, which other binaries test with.

mod coexistence;
#[cfg(feature = "snapshot")]
mod for_libvirt;
mod hung_fs_selftest;
#[cfg(feature = "snapshot")]
mod libvirt_documents;
mod lxc;
#[path = "../support/mod.rs"]
mod support;
#[cfg(feature = "snapshot")]
mod virtlockd;
