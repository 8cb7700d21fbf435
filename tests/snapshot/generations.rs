//! Locks through `exec`, in real processes: the test binary executes itself.
//!
//! A test starts this binary again with the name of one test and a role in the environment; that
//! process executes itself anew, generation after generation, and what it asserts there is its exit
//! code. What a generation tells the next stands beside the documents in what is carried.
#![allow(unsafe_code, reason = "restoring what an exec has carried over")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use crate::support::alone::{this_binary, this_test};
use crate::support::rounds::rounds;
use lockspace::snapshot::{Document, Snapshot};
use lockspace::{LockSpace, snapshot};
use serde_json::{Value, json};

/// Where a generation finds what the one before has carried.
pub(crate) const CARRIED: &str = "LOCKSPACE_TEST_CARRIED";

/// The folder of a process that re-executes itself; without it, a test is a test.
pub(crate) const FOLDER: &str = "LOCKSPACE_TEST_FOLDER";

/// The calling test once more, as the process that re-executes itself: [`role`] finds it there.
pub(crate) fn start(folder: &Path) -> Command {
    let mut command = this_binary(&this_test());
    command.env(FOLDER, folder).env_remove(CARRIED);
    command
}

#[track_caller]
pub(crate) fn run(folder: &Path) -> Output {
    let output = start(folder).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    assert!(out.contains("the end of the last generation"), "it ended early: {out}{err}");
    output
}

/// What this process is, if it is one that a test has started.
pub(crate) struct Role {
    pub(crate) test: String,
    pub(crate) folder: PathBuf,
    /// Counted from 0.
    pub(crate) generation: u64,
    pub(crate) documents: Vec<Document>,
    /// Whatever the generation before has noted.
    pub(crate) notes: Value,
}

pub(crate) fn role() -> Option<Role> {
    let (test, folder) = (this_test(), PathBuf::from(std::env::var_os(FOLDER)?));
    let Some(number) = std::env::var_os(CARRIED) else {
        let (documents, notes) = (Vec::new(), Value::Null);
        return Some(Role { test, folder, generation: 0, documents, notes });
    };
    let state = snapshot::carried(number.to_str().unwrap().parse().unwrap()).unwrap();
    let mut state: Value = serde_json::from_slice(&state).unwrap();
    Some(Role {
        test,
        folder,
        generation: state["generation"].as_u64().unwrap(),
        documents: serde_json::from_value(state["documents"].take()).unwrap(),
        notes: state["notes"].take(),
    })
}

impl Role {
    pub(crate) fn restore(&self) -> Vec<LockSpace> {
        // SAFETY: nobody in this process knows of an inherited descriptor.
        unsafe { snapshot::restore(&self.documents) }.unwrap()
    }

    /// Executes the next generation. Never returns.
    pub(crate) fn go_on<'a>(
        &self,
        spaces: impl IntoIterator<Item = &'a LockSpace>,
        notes: Value,
    ) -> ! {
        self.go_on_after(spaces, notes, |_| {});
    }

    /// The same, with something that is done when the documents are written.
    pub(crate) fn go_on_after<'a>(
        &self,
        spaces: impl IntoIterator<Item = &'a LockSpace>,
        notes: Value,
        frozen: impl FnOnce(&mut Command),
    ) -> ! {
        let mut snapshot = Snapshot::take(spaces).unwrap();
        let generation = self.generation + 1;
        let state =
            json!({ "generation": generation, "documents": snapshot.documents(), "notes": notes });
        let carried = snapshot.carry(state.to_string().as_bytes()).unwrap();
        let mut command = this_binary(&self.test);
        frozen(&mut command);
        let error = snapshot.exec(command.env(CARRIED, carried.to_string()));
        panic!("{error}");
    }
}

pub(crate) fn the_end() {
    println!("the end of the last generation");
}

/// Waits for another process's file, for a minute.
#[track_caller]
pub(crate) fn wait_for(path: &Path) {
    for _ in 0..rounds(6000) {
        if path.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("no {}", path.display());
}
