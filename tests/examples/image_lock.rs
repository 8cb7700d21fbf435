//! The example `image_lock`.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use crate::programs::{Holding, Home, example, image_lock, run};
use crate::support::forked::without_threads;
use crate::support::interop::skip_or_fail;

/// An `image_lock --wait` that has said for whom it waits.
struct Waiting {
    process: Child,
    said: String,
    out: BufReader<ChildStdout>,
    /// Kept open, as it says more.
    _err: BufReader<ChildStderr>,
}

impl Waiting {
    fn start(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let mut err = BufReader::new(process.stderr.take().unwrap());
        let mut said = String::new();
        err.read_line(&mut said).unwrap();
        Self { process, said, out, _err: err }
    }

    /// Until it says that it has locked so many images.
    fn until_it_holds(self, images: usize) -> Holding {
        Holding::of(self.process, self.out, images)
    }
}

#[test]
fn without_arguments_image_lock_shows_the_main_job() {
    let shown = run(image_lock([""; 0]));
    assert_eq!(shown.code, Some(0), "{shown:?}");
    for part in [
        "disk.qcow2\" is busy: held exclusive by owner 101; asked for exclusive (",
        "held by owners 101, 102 (shared, byte 0)",
        "base.qcow2\" is busy: held shared by owner 101 and 1 more; asked for exclusive (",
        "VM 102 waits for the disk",
        "granted: VM 102 has ",
        "held: 0, lock files left: 0",
    ] {
        assert!(shown.out.contains(part), "no {part:?} in:\n{}", shown.out);
    }
    assert_eq!(shown.err, "");
}

#[test]
fn a_second_process_is_refused_and_told_the_pid_until_the_first_is_killed() {
    let home = Home::new();
    let mut first = Holding::start(home.by_directory(["--hold", "600", "--owner", "7"]));
    let (image, file) = first.locked();
    assert_eq!(image, home.image());
    assert_eq!(file.parent(), Some(&*home.locks()));
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
    assert!(file.exists());

    for options in [[].as_slice(), &["--shared"], &["--owner", "7"]] {
        let mut command = home.by_directory([]);
        command.args(options);
        let refused = run(command);
        let (image, pid) = (home.image(), first.pid());
        let mode = if options == ["--shared"] { "shared" } else { "exclusive" };
        let said = format!(
            "{image:?} is busy: held outside this lock space, exclusive on byte 0; asked for {mode} ({})\n  \
             pid {pid} \"image_lock\" (exclusive, byte 0, OFD lock)\n",
            file.display()
        );
        assert_eq!((refused.code, refused.out, refused.err), (Some(1), said, String::new()));
    }

    first.kill();
    assert_eq!(home.lock_files(), 1, "who is killed leaves its lock file");
    let next = run(home.by_directory([]));
    assert_eq!((next.code, next.out), (Some(0), first.said.clone()));
    assert_eq!(home.lock_files(), 0, "and the next one removes it");
}

#[test]
fn shared_holders_hold_together_and_each_is_named_to_who_wants_it_alone() {
    let home = Home::new();
    let first = Holding::start(home.by_directory(["--shared", "--hold", "600"]));
    let second = Holding::start(home.by_directory(["--hold", "600", "--shared"]));
    assert_eq!(first.said, second.said);

    let refused = run(home.by_directory([]));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(refused.out.lines().count(), 3, "{}", refused.out);
    for holder in [&first, &second] {
        let line = format!("  pid {} \"image_lock\" (shared, byte 0, OFD lock)", holder.pid());
        assert!(refused.out.lines().any(|l| l == line), "no {line:?} in:\n{}", refused.out);
    }
}

#[test]
fn a_hold_ends_after_its_seconds_and_takes_the_lock_file_with_it() {
    let home = Home::new();
    for options in [[].as_slice(), &["--hold", "0"], &["--hold=0.01"], &["--shared"]] {
        let mut command = home.by_directory([]);
        command.args(options);
        let ended = run(command);
        assert_eq!(ended.code, Some(0), "{options:?}: {ended:?}");
        assert!(ended.out.starts_with("locked ") && ended.out.lines().count() == 1, "{ended:?}");
        assert_eq!(home.lock_files(), 0);
    }
}

#[test]
fn a_direct_hold_locks_the_image_itself_and_leaves_it_as_it_was() {
    let home = Home::new();
    let mut first = Holding::start(home.directly(["--hold", "600"]));
    assert_eq!(first.locked(), (&*home.image(), &*home.image()));

    let link = home.path().join("hard_link.img");
    fs::hard_link(home.image(), &link).unwrap();
    for image in [home.image(), link, home.path().join(".//locks/../a.img")] {
        fs::create_dir_all(home.locks()).unwrap();
        let refused = run(image_lock([OsStr::new("--direct"), image.as_os_str()]));
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let pid = format!("\n  pid {} \"image_lock\" (exclusive, byte 0, OFD lock)\n", first.pid());
        assert!(refused.out.ends_with(&pid), "{refused:?}");
    }

    first.kill();
    assert_eq!(run(home.directly([])).code, Some(0));
    assert_eq!(fs::read(home.image()).unwrap(), b"an image");
    assert_eq!(home.lock_files(), 0);
}

#[test]
fn sha256_names_need_the_feature_and_say_so() {
    let home = Home::new();
    if cfg!(feature = "sha256") {
        let first = Holding::start(home.by_directory(["--sha256", "--hold", "600"]));
        let (_, file) = first.locked();
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
        assert!(file.exists());
        assert_eq!(run(home.by_directory(["--sha256"])).code, Some(1));
    } else {
        let refused = run(home.by_directory(["--sha256"]));
        assert_eq!((refused.code, &*refused.out), (Some(2), ""));
        assert!(refused.err.contains("feature `sha256`"), "{}", refused.err);
    }
}

#[test]
fn a_waiter_tells_who_holds_and_locks_once_the_holder_is_gone() {
    let home = Home::new();
    for direct in [false, true] {
        let command = |options| match direct {
            false => home.by_directory(options),
            true => home.directly(options),
        };
        let mut first = Holding::start(command(["--hold", "600"]));
        let waiting = Waiting::start(command(["--wait=600", "--hold=600"]));
        let told = format!(
            "{} is held by pid {} \"image_lock\" (exclusive, byte 0, OFD lock)\n",
            home.image().display(),
            first.pid()
        );
        assert!(waiting.said.starts_with("waiting, "), "{}", waiting.said);
        assert!(waiting.said.ends_with(&told), "{}", waiting.said);
        first.kill();
        let second = waiting.until_it_holds(1);
        assert_eq!(second.said, first.said);
    }
}

#[test]
fn a_wait_that_is_over_is_refused_with_the_time_and_the_holder() {
    let home = Home::new();
    let first = Holding::start(home.by_directory(["--hold", "600"]));
    let (busy, pid) = ("is busy: held outside this lock space", first.pid());
    let holder = format!("\n  pid {pid} \"image_lock\" (exclusive, byte 0, OFD lock)\n");
    for wait in ["0", "0.05"] {
        let refused = run(home.by_directory(["--wait", wait]));
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.out.contains(busy) && refused.out.ends_with(&holder), "{refused:?}");
        assert_eq!(refused.out.contains(", waited "), wait != "0", "{refused:?}");
        assert_eq!(refused.err, "", "it tells once a second");
    }
}

#[test]
fn several_images_are_locked_all_or_none() {
    let home = Home::new();
    let others = ["b.img", "c.img"].map(|name| home.path().join(name));
    others.iter().for_each(|image| fs::write(image, "").unwrap());
    let with_others = |mut command: Command| {
        command.args(&others);
        command
    };

    let mut all = Holding::start_with(with_others(home.by_directory(["--hold", "600"])), 3);
    let images: Vec<_> = [&home.image()].into_iter().chain(&others).cloned().collect();
    for (line, image) in all.said.lines().zip(&images) {
        assert!(line.starts_with(&format!("locked {} as ", image.display())), "{line}");
    }
    assert_eq!(home.lock_files(), 3);
    for image in &images {
        let mut command = image_lock([OsStr::new("--dir"), home.locks().as_os_str()]);
        command.arg(image);
        assert_eq!(run(command).code, Some(1), "{}", image.display());
    }
    all.kill();

    // The last of three is held: nothing is locked, and none of the others stays locked.
    let mut command = image_lock([OsStr::new("--dir"), home.locks().as_os_str()]);
    command.args(["--hold", "600"]).arg(&others[1]);
    let mut last = Holding::start(command);
    let refused = run(with_others(home.by_directory([])));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.out.starts_with(&format!("{:?} is busy: ", others[1])), "{refused:?}");
    assert_eq!(home.lock_files(), 1);

    let waiting = Waiting::start(with_others(home.by_directory(["--wait=600", "--hold=600"])));
    let told = format!("{} is held by pid {} ", others[1].display(), last.pid());
    assert!(waiting.said.contains(&told), "{}", waiting.said);
    assert_eq!(run(home.by_directory(["--wait=60"])).code, Some(0), "it waits with nothing held");
    last.kill();
    assert_eq!(waiting.until_it_holds(3).said, all.said);
}

#[test]
fn an_image_that_is_named_twice_is_refused() {
    let home = Home::new();
    for place in [home.by_directory([]), home.directly([])] {
        let mut command = place;
        command.arg(home.path().join(".//a.img"));
        let ended = run(command);
        assert_eq!((ended.code, &*ended.out), (Some(1), ""), "{ended:?}");
        assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
    }
}

#[test]
fn wrong_usage_is_told_with_the_usage_and_ends_with_2() {
    let home = Home::new();
    let image = home.image();
    let image = image.to_str().unwrap();
    for args in [
        ["--frobnicate", image].as_slice(),
        &["-x", image],
        &["--shared"],
        &["--shared=yes", image],
        &["--wait"],
        &["--wait", "long", image],
        &["--wait=-1", image],
        &["--wait", "inf", image],
        &["--hold"],
        &[image, "--hold"],
        &["--hold", "soon", image],
        &["--hold=-1", image],
        &["--hold", "-0.5", image],
        &["--hold", "NaN", image],
        &["--hold", "inf", image],
        &["--hold", "1e300", image],
        &["--hold", "", image],
        &["--owner", image],
        &["--owner=-1", image],
        &["--owner", "me", image],
        &["--owner", "18446744073709551616", image],
        &["--dir"],
        &["--dir", "/nowhere", "--direct", image],
        &["--direct", "--sha256", image],
    ] {
        let ended = run(image_lock(args));
        assert_eq!((ended.code, &*ended.out), (Some(2), ""), "{args:?}: {ended:?}");
        assert!(ended.err.contains("\nUsage: image_lock "), "{args:?}: {ended:?}");
    }
    let helped = run(image_lock(["--help"]));
    assert_eq!((helped.code, &*helped.err), (Some(0), ""));
    assert!(helped.out.starts_with("Usage: image_lock "));
}

#[test]
fn what_cannot_be_locked_is_told_and_ends_with_1() {
    let home = Home::new();
    let folder = home.path();
    let missing = folder.join("missing.img");
    for (image, why) in [(&missing, "does not exist"), (&folder, "is a directory")] {
        for place in
            [["--dir".as_ref(), home.locks().as_os_str()].as_slice(), &["--direct".as_ref()]]
        {
            let mut command = image_lock(place);
            command.arg(image);
            let ended = run(command);
            assert_eq!((ended.code, &*ended.out), (Some(1), ""), "{ended:?}");
            assert!(ended.err.contains(why) && ended.err.lines().count() == 1, "{ended:?}");
        }
    }
    assert_eq!(home.lock_files(), 0);

    let mut command = image_lock(["--dir"]);
    command.args([home.image(), home.image()]);
    let ended = run(command);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("is not a directory"), "{ended:?}");
}

/// The directory of a user's own, as another user than root: root's is on the real `/run`.
#[test]
fn without_a_directory_a_user_gets_one_of_its_own_and_no_stranger_may_have_made_it() {
    if !rustix::process::geteuid().is_root() {
        return skip_or_fail("a directory of another user", "this is not root");
    }
    // No such user needs to exist. The pid keeps it apart from other runs of this test.
    let user = 1_000_000_000 + std::process::id();
    let home = Home::new();
    let runtime = home.path().join("runtime");
    fs::create_dir(&runtime).unwrap();
    std::os::unix::fs::chown(&runtime, Some(user), Some(user)).unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Where the build lies, other users may have no access.
    let tool = home.path().join("image_lock");
    // Not by `fs::copy`: a process that another test spawns meanwhile would inherit the open file,
    // and a program that is open for writing cannot be run.
    let copied = Command::new("cp").arg(example("image_lock")).arg(&tool).status().unwrap();
    assert!(copied.success());
    let as_user = |runtime: Option<&Path>| {
        let mut command = Command::new(&tool);
        command.uid(user).gid(user).env_remove("XDG_RUNTIME_DIR");
        if let Some(runtime) = runtime {
            command.env("XDG_RUNTIME_DIR", runtime);
        }
        command
    };

    let mut command = as_user(Some(&runtime));
    command.args(["--hold", "600"]).arg(home.image());
    let holding = Holding::start(command);
    let directory = runtime.join("lockspace");
    assert_eq!(holding.locked().1.parent(), Some(&*directory));
    let made = fs::metadata(&directory).unwrap();
    assert_eq!((made.uid(), made.mode() & 0o777), (user, 0o700));

    let fallback = PathBuf::from(format!("/tmp/lockspace-{user}"));
    let lock_in_tmp = |runtime| {
        let mut command = as_user(runtime);
        command.arg(home.image());
        run(command)
    };
    for runtime in [None, Some(Path::new("relative"))] {
        let locked = lock_in_tmp(runtime);
        assert_eq!(locked.code, Some(0), "{locked:?}");
        assert!(locked.out.contains(&format!(" as {}/", fallback.display())), "{locked:?}");
    }

    // Somebody else was first: with a directory, with a link to one, with one that is open to all.
    fs::set_permissions(&fallback, fs::Permissions::from_mode(0o777)).unwrap();
    let open_to_all = lock_in_tmp(None);
    fs::remove_dir(&fallback).unwrap();
    fs::create_dir(&fallback).unwrap();
    let of_another = lock_in_tmp(None);
    fs::remove_dir(&fallback).unwrap();
    std::os::unix::fs::symlink(&directory, &fallback).unwrap();
    let a_link = lock_in_tmp(None);
    fs::remove_file(&fallback).unwrap();
    for refused in [open_to_all, of_another, a_link] {
        assert_eq!((refused.code, &*refused.out), (Some(1), ""), "{refused:?}");
        assert!(refused.err.contains("is not a directory of this user alone"), "{refused:?}");
    }
}

/// A container may forbid it, or a user have too many.
#[test]
fn where_no_thread_can_be_had_image_lock_waits_all_the_same() {
    let home = Home::new();
    let mut command = home.by_directory(["--wait", "60"]);
    if !without_threads(&mut command) {
        return skip_or_fail("seccomp", "the kernel refuses a filter");
    }
    let locked = run(command);
    assert_eq!(locked.code, Some(0), "{locked:?}");
    assert!(locked.out.starts_with("locked "), "{locked:?}");
    let said = "waiting without telling who holds: no thread for it: Operation not permitted";
    assert!(locked.err.starts_with(said), "{locked:?}");

    let mut show = image_lock([""; 0]);
    without_threads(&mut show);
    let shown = run(show);
    assert_eq!(shown.code, Some(1), "{shown:?}");
    assert!(!shown.err.contains("panicked"), "{shown:?}");
}
