//! Replacing this program by another, and being as before where that fails.
//!
//! `Command::exec` of the standard library prepares for the new program before it knows that
//! there will be one: it clears the signal mask and lets SIGPIPE kill again. A daemon that goes on
//! after a failed exec would then die at the next client that hangs up, with every lock it holds.
//!
//! And it calls `execvp`, which gives what the kernel does not take for a program to `/bin/sh`: for
//! a broken upgrade, every lock would be lost to a shell. So `execve` is called here, as the last
//! step of the preparation, and `execvp` is never reached.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fd::{OnExec, set_on_exec};

/// Executes `command` in this process, with these descriptors kept open, and with this variable in
/// the environment, or without it. Returns only if that fails: then they close on exec again, and
/// signal mask, SIGPIPE and working directory are as they were.
///
/// The descriptors are the caller's, who keeps them open through the call.
pub(crate) fn exec(
    command: &mut Command,
    keep: Vec<RawFd>,
    variable: (&str, Option<String>),
) -> io::Error {
    let image = match Image::of(command, variable) {
        Ok(image) => image,
        Err(nul) => return nul.into(),
    };
    let signals = Signals::now();
    let here = command.get_current_dir().and_then(|_| super::fs::open_path_only(".").ok());
    let keep = Arc::new(keep);
    // A closure cannot be taken out of a command again, so it must do nothing the next time.
    let armed = Arc::new(AtomicBool::new(true));
    let last_thing = {
        let (keep, armed) = (Arc::clone(&keep), Arc::clone(&armed));
        move || match armed.load(Ordering::Relaxed) {
            true => {
                set_on_exec(&keep, OnExec::KeepOpen)?;
                Err(image.execute())
            }
            false => Ok(()),
        }
    };
    // SAFETY: it runs in this process, or, if the command is spawned later, does nothing.
    unsafe { command.pre_exec(last_thing) };
    let error = command.exec();
    armed.store(false, Ordering::Relaxed);
    // It can fail only for a number that is not open.
    let _ = set_on_exec(&keep, OnExec::Close);
    signals.restore();
    if let Some(here) = here {
        let _ = rustix::process::fchdir(here);
    }
    error
}

/// What is to be executed: what a command tells of itself.
struct Image {
    /// Where the program may be, in the order of the search path.
    programs: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Image {
    fn of(
        command: &Command,
        (name, value): (&str, Option<String>),
    ) -> Result<Self, std::ffi::NulError> {
        let c_string = |text: &OsStr| CString::new(text.as_bytes());
        let mut variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        let own = (OsStr::new(name), value.as_deref().map(OsStr::new));
        for (name, value) in command.get_envs().chain([own]) {
            match value {
                Some(value) => drop(variables.insert(name.to_owned(), value.to_owned())),
                None => drop(variables.remove(name)),
            }
        }
        let program = command.get_program();
        let programs = if program.as_bytes().contains(&b'/') {
            vec![c_string(program)?]
        } else {
            let path = variables.get(OsStr::new("PATH"));
            let path = path.map_or(OsStr::new("/bin:/usr/bin"), OsString::as_os_str);
            let folders = path.as_bytes().split(|&byte| byte == b':').map(OsStr::from_bytes);
            let programs = folders.map(|folder| c_string(Path::new(folder).join(program).as_ref()));
            programs.collect::<Result<_, _>>()?
        };
        let arguments = std::iter::once(program).chain(command.get_args()).map(c_string);
        let environment = variables.into_iter().map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            CString::new(variable.into_vec())
        });
        Ok(Self {
            programs,
            arguments: arguments.collect::<Result<_, _>>()?,
            environment: environment.collect::<Result<_, _>>()?,
        })
    }

    /// Returns only if it fails.
    fn execute(&self) -> io::Error {
        let pointers = |texts: &[CString]| -> Vec<_> {
            texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
        };
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        let mut error = io::Error::from_raw_os_error(libc::ENOENT);
        for program in &self.programs {
            // SAFETY: C strings, and arrays of them that end with null; all live through the call.
            unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            let now = io::Error::last_os_error();
            match now.raw_os_error() {
                // The search goes on, and the first that was there is what is told of.
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => error = now,
                _ => return now,
            }
        }
        error
    }
}

/// What the standard library changes before it calls `execve`.
struct Signals {
    mask: libc::sigset_t,
    pipe: libc::sigaction,
}

impl Signals {
    fn now() -> Self {
        let mut mask = MaybeUninit::uninit();
        let mut pipe = MaybeUninit::uninit();
        // SAFETY: both calls only write what they are pointed at, here room for just that, and
        // with these arguments neither can fail; zeros would be valid for both types too.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr());
            libc::sigaction(libc::SIGPIPE, ptr::null(), pipe.as_mut_ptr());
            Self { mask: mask.assume_init(), pipe: pipe.assume_init() }
        }
    }

    fn restore(&self) {
        // SAFETY: both are as the kernel gave them, and only they are read.
        unsafe {
            libc::sigaction(libc::SIGPIPE, &raw const self.pipe, ptr::null_mut());
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.mask, ptr::null_mut());
        }
    }
}
