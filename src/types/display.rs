//! How messages show a path.

use std::fmt;
use std::path::Path;

/// A path as a message shows it: plain, or quoted where a character in it could forge a line.
pub(crate) struct DisplayPath<'a>(pub(crate) &'a Path);

impl fmt::Display for DisplayPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.to_str() {
            Some(text) if text.chars().flat_map(char::escape_debug).eq(text.chars()) => {
                f.write_str(text)
            }
            _ => write!(f, "{:?}", self.0),
        }
    }
}

/// The subject and verb of a sentence about a file: its path, or "it" where it has none.
pub(super) struct FileSubject<'a>(pub(super) &'a Path);

impl fmt::Display for FileSubject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            path if path.as_os_str().is_empty() => f.write_str("it is"),
            path => write!(f, "{} is", DisplayPath(path)),
        }
    }
}

/// What follows the name of a system call, which is about a file or about none.
pub(super) struct AfterCall<'a>(pub(super) &'a Path);

impl fmt::Display for AfterCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            path if path.as_os_str().is_empty() => Ok(()),
            path => write!(f, " {}", DisplayPath(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::IoError;

    #[test]
    fn a_path_in_a_message_cannot_forge_a_line() {
        assert_eq!(DisplayPath(Path::new("/run/vmm/locks")).to_string(), "/run/vmm/locks");
        assert_eq!(DisplayPath(Path::new("/a\nb is free")).to_string(), r#""/a\nb is free""#);
        let failed = IoError::new("openat", "/img/a", std::io::Error::from_raw_os_error(24));
        assert_eq!(failed.to_string(), "openat /img/a: Too many open files (os error 24)");
        let failed = IoError::new("mmap", "", std::io::Error::from_raw_os_error(12));
        assert_eq!(failed.to_string(), "mmap: Cannot allocate memory (os error 12)");
    }
}
