//! Tells who holds locks on disk images, or on lock files: QEMU, libvirt, LXC, a lockspace.
//!
//! ```sh
//! cargo run --example who_holds -- FILE...
//! ```
//!
//! It shows the locks on the very file that is named. Where an image's lock is on a lock file in
//! a directory, name that file: `image_lock` prints its path. The image has no holders then.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "Usage: who_holds FILE...";

fn main() -> io::Result<ExitCode> {
    let images: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let mut out = io::stdout();
    match images.first() {
        Some(first) if first.as_os_str() == "--help" => {
            writeln!(out, "{USAGE}")?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(_) => {}
        None => {
            eprintln!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
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
