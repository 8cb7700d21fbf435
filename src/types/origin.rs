//! Where the file of a held resource came from.

/// How a held resource got its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// The first hold did not ask to create the file: the file stays after the last release.
    Existing,
    /// The first hold asked to create the file, which may have been there already: the last release
    /// removes it.
    AutoCreated,
    /// The caller's own open file ([`Target::opened`](crate::Target::opened)).
    Opened,
    /// No file: the space is in memory.
    InMemory,
}
