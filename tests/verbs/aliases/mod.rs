//! One file by many names, each spelled in its own way.

mod hard_links;
mod held;
mod new_images;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Other names of `a.raw` in this directory: links and spellings.
fn aliases(dir: &Path) -> Vec<PathBuf> {
    let image = dir.join("a.raw");
    let [hard, soft, folder] = ["hard", "soft", "folder"].map(|name| dir.join(name));
    fs::hard_link(&image, &hard).unwrap();
    symlink(&image, &soft).unwrap();
    fs::create_dir(&folder).unwrap();
    let mut aliases = vec![hard, soft];
    aliases.extend(spellings(dir));
    aliases
}

/// Other spellings of `a.raw`, in a directory that has a `folder`.
fn spellings(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.to_str().unwrap();
    ["//a.raw", "/./a.raw", "/folder/../a.raw", "/folder/..//./a.raw"]
        .map(|tail| format!("{dir}{tail}").into())
        .to_vec()
}
