//! What a test does when a program or a kernel feature that it needs is not on this machine.
//!
//! `cargo test` shall pass on any Linux, so such a test says why it did nothing. CI sets
//! `LOCKSPACE_REQUIRE_INTEROP=1`, and there a missing one is a failure.

use std::env;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Says that `what` is not tested here, and `why`; fails where CI requires it.
///
/// The caller returns after it: `return skip_or_fail("qemu-img", "not in PATH")`.
#[track_caller]
pub(crate) fn skip_or_fail(what: &str, why: &str) {
    if env::var_os("LOCKSPACE_REQUIRE_INTEROP").is_some_and(|value| value == "1") {
        panic!("{what} is required by LOCKSPACE_REQUIRE_INTEROP: {why}");
    }
    // Not by `println!`, which the test harness shows for failed tests only.
    let _ = writeln!(io::stderr(), "skipped: {what}: {why}");
}

/// Finds a program in PATH, or in the folders where Debian keeps daemons, which only root's PATH
/// has. `None` after saying `skipped`, or a failure, as [`skip_or_fail`] decides.
#[track_caller]
pub(crate) fn require_tool(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        });
    if found.is_none() {
        skip_or_fail(name, "not in PATH");
    }
    found
}
