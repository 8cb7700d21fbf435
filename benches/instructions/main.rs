//! What this crate costs, in instructions instead of time: these are the same on a busy machine.
//!
//! ```sh
//! cargo bench --all-features --bench instructions               # instructions for one of each work
//! cargo test --all-features --bench instructions                # the functions that a call goes through
//! cargo bench --all-features --bench instructions -- --update   # writes the figures down
//! ```
//!
//! Both compare their figures with those in `benches/README.md`, and fail where one has grown by more
//! than [`table::GROWTH`]. The figures there name the tools that they were counted with: with any other
//! compiler, C library or valgrind, the new ones are told, and nothing fails.
//!
//! This program runs itself under valgrind: see [`callgrind`].
#![allow(unsafe_code, reason = "system calls with nothing around them, and the allocator's books")]

use std::error::Error;
use std::process::ExitCode;

use crate::table::{Figures, Row, Table};

mod callgrind;
#[path = "../peers/raw.rs"]
#[allow(dead_code, reason = "other benches use the rest")]
mod raw;
mod table;
mod ways;
mod works;

/// What a process that this program starts has to do.
const CHILD: &str = "--child";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    use lexopt::prelude::*;

    let mut update = false;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("bench") => {}
            Long("update") => update = true,
            Long("child") => {
                child(&parser.value()?.string()?);
                return Ok(ExitCode::SUCCESS);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let Some(tools) = table::tools()? else {
        println!(
            "skipped: valgrind, which counts the instructions, is not installed (on Debian: \
             apt-get install valgrind)"
        );
        // As the tests say it of QEMU and libvirt.
        let required = std::env::var_os("LOCKSPACE_REQUIRE_INTEROP").is_some();
        return Ok(if required { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    };
    // Optimized code shows what the crate costs; in other code no function is inlined.
    let table = if cfg!(debug_assertions) { ways()? } else { works()? };
    Ok(if table.settle(&tools, update)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn child(what: &str) {
    match what {
        "works" => works::run(),
        "ways" => ways::run(),
        ways::HOLDER => ways::hold(),
        other => panic!("no child {other:?}"),
    }
}

fn works() -> Result<Table, Box<dyn Error>> {
    let profiles = callgrind::profiles("works")?;
    let mut rows = works::rows(&profiles)?;
    let bytes = works::memory_for_each();
    rows.push(Row {
        title: "memory for each held resource, in bytes",
        figures: Figures { first: bytes, second: None },
        at_most: Some(Figures { first: 220, second: None }),
    });
    Ok(Table {
        mark: "instructions",
        columns: ["work", "instructions", "system calls"],
        command: "cargo bench --all-features --bench instructions",
        rows,
    })
}

fn ways() -> Result<Table, Box<dyn Error>> {
    let profiles = callgrind::profiles("ways")?;
    Ok(Table {
        mark: "ways",
        columns: ["way", "functions", "files"],
        command: "cargo test --all-features --bench instructions",
        rows: ways::rows(&profiles)?,
    })
}
