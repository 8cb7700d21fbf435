//! Where the file of a held resource came from.

/// How a held resource got its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// It was there, and stays.
    Existing,
    /// The first hold asked to create it: the last release removes it.
    AutoCreated,
    /// It is the caller's own open file ([`Target::opened`](crate::Target::opened)).
    Opened,
    /// There is none: the space is in memory only.
    InMemory,
}
