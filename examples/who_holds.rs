//! Tells who holds locks on disk images: QEMU, libvirt, LXC, a lockspace.
//!
//! ```sh
//! cargo run --example who_holds -- IMAGE...
//! ```
//!
//! It shows the locks on the very file that is named. Where an image's lock is on a lock file in
//! a directory, name that file: `image_lock` prints its path. The image has no holders then.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> io::Result<ExitCode> {
    let images: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if images.is_empty() {
        eprintln!("Usage: who_holds IMAGE...");
        return Ok(ExitCode::from(2));
    }
    let mut out = io::stdout();
    let mut code = ExitCode::SUCCESS;
    for image in images {
        match lockspace::holders_of(&image) {
            Ok(holders) if holders.is_empty() => writeln!(out, "{image:?}: no holders")?,
            Ok(holders) => {
                writeln!(out, "{image:?}:")?;
                for holder in holders {
                    writeln!(out, "  {holder}")?;
                }
            }
            Err(error) => {
                eprintln!("who_holds: {image:?}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
