//! What a caller asks for: which resource, in which mode, on which bytes.

use super::{ByteRange, HardLinks, Mode, Target};

/// A request to hold a [`Target`] in a [`Mode`], with settings.
///
/// ```
/// use lockspace::{ByteRange, Mode, Request, Target};
///
/// let base = Request::shared(Target::image("/img/base.qcow2")).auto_create();
/// let disk = Request::exclusive("disk-7").range(ByteRange::WHOLE_FILE);
/// let by_mode = Request::new(Mode::Exclusive, "disk-8");
/// ```
#[derive(Clone, Debug)]
#[must_use = "a request does nothing until it is given to `LockSpace::acquire`"]
pub struct Request<'a> {
    pub(crate) target: Target<'a>,
    pub(crate) settings: Settings,
}

/// What a request says beside its target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    /// `None`: the range that the space was built with.
    pub(crate) range: Option<ByteRange>,
    pub(crate) auto_create: bool,
    pub(crate) upgradable: bool,
    pub(crate) hard_links: HardLinks,
}

impl<'a> Request<'a> {
    /// A request for the target in this mode.
    pub fn new(mode: Mode, target: impl Into<Target<'a>>) -> Self {
        let settings = Settings {
            mode,
            range: None,
            auto_create: false,
            upgradable: false,
            hard_links: HardLinks::Allowed,
        };
        Self { target: target.into(), settings }
    }

    /// A request for the target as the only hold.
    pub fn exclusive(target: impl Into<Target<'a>>) -> Self {
        Self::new(Mode::Exclusive, target)
    }

    /// A request for the target beside other shared holds.
    pub fn shared(target: impl Into<Target<'a>>) -> Self {
        Self::new(Mode::Shared, target)
    }

    /// Creates the lock file, never an image, where there is none, and removes it with the last
    /// release.
    ///
    /// The last release also removes a file that was there before, such as one that a killed
    /// program left. Of several shared holds, the first in the space decides. A direct space
    /// refuses it: the file there is the user's image. For [`Target::opened`] it means nothing.
    ///
    /// Do not use this if the same lock files are used by a program, such as LXC, that does not
    /// check whether a file still has its name after locking it. Such a program can wait for a file
    /// that is then removed, and lock it while the next hold of this crate locks a new file.
    /// [`LockSpace::create`](crate::LockSpace::create) makes a file that stays.
    #[doc(alias = "VIR_LOCK_SPACE_ACQUIRE_AUTOCREATE")]
    pub fn auto_create(mut self) -> Self {
        self.settings.auto_create = true;
        self
    }

    /// Opens the file for writing even for a shared hold, so that the hold can become exclusive
    /// later. Only a direct space needs this: otherwise it opens the file for reading only, so that
    /// a read-only image can be shared. Of several shared holds, the first in the space decides.
    pub fn upgradable(mut self) -> Self {
        self.settings.upgradable = true;
        self
    }

    /// Locks these bytes instead of the range of the space ([`ByteRange::FIRST`] unless its builder
    /// said otherwise). All holds of one resource in a space have the same range.
    pub fn range(mut self, range: ByteRange) -> Self {
        self.settings.range = Some(range);
        self
    }

    /// Refuses a file that has more than one name. In a space with a directory, two hard links of
    /// one image are two resources: this setting detects them.
    pub fn refuse_hard_links(mut self) -> Self {
        self.settings.hard_links = HardLinks::Refused;
        self
    }
}
