//! Resolving a request: which resource, and which file, its target means.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Patience, blocking, failure};
use crate::core::Core;
use crate::engine::{self, Key, LockError, Name, OpenNaming};
use crate::error::AcquireError;
use crate::table::Claim;
use crate::types::{
    FileId, HardLinks, InvalidRequest, LockSpec, OwnerId, Request, Settings, TargetKind,
};
use crate::wait::{CallQueue, DescriptorPermit, OnTimeout};

/// A request whose resource is known.
pub(crate) struct ResolvedRequest<'a> {
    /// The target as the caller has written it.
    pub(super) spelling: &'a OsStr,
    /// The name of the resource.
    pub(super) text: Cow<'a, OsStr>,
    pub(super) spec: LockSpec,
    /// The caller's open file, if the target is one.
    pub(super) opened: Option<OpenedFile<'a>>,
    /// The image that is at the path now, if the target is an image.
    pub(super) image: Option<FileId>,
}

/// A file that the caller has open.
pub(super) struct OpenedFile<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) id: FileId,
    /// Its path according to `/proc`. Read in advance, as no system call is made under the table's
    /// mutex.
    path: PathBuf,
}

impl ResolvedRequest<'_> {
    /// The file that the request means, if it is known.
    pub(super) fn file(&self) -> Option<FileId> {
        self.image.or(self.opened.as_ref().map(|opened| opened.id))
    }

    pub(super) fn claim(&self, owner: OwnerId) -> Claim {
        Claim {
            owner,
            mode: self.spec.mode,
            range: self.spec.range,
            file: self.opened.as_ref().map(|opened| opened.id),
            opened: self.opened.is_some(),
        }
    }

    /// The resource's name, with its way to the file.
    pub(super) fn name(&self, naming: &OpenNaming) -> Result<Arc<Name>, AcquireError> {
        let key = Key::from(&*self.text);
        let name = match &self.opened {
            Some(opened) => OpenNaming::name_of_opened(key, opened.path.clone()),
            None => naming.name(key),
        };
        name.map_err(|why| AcquireError::Invalid { name: self.text.clone().into_owned(), why })
    }

    /// The queue of calls on the file of the resource, which has this name.
    pub(super) fn queue(&self, name: &Name) -> CallQueue {
        match &self.opened {
            Some(opened) => CallQueue::Mount(engine::mount_of(opened.fd)),
            None => queue_of_name(name).unwrap_or(CallQueue::Device(0)),
        }
    }

    /// The caller's open file.
    pub(crate) fn opened(&self) -> Option<BorrowedFd<'_>> {
        self.opened.as_ref().map(|opened| opened.fd)
    }

    pub(crate) fn text(&self) -> &OsStr {
        &self.text
    }
}

/// The queue of calls on the file of this name, if the name leads to a file.
pub(super) fn queue_of_name(name: &Name) -> Option<CallQueue> {
    match name.directory() {
        Some(directory) => Some(CallQueue::Device(directory.device())),
        None => name.is_path().then(|| CallQueue::of_path(Path::new(name.text()))),
    }
}

/// The system calls that a target needs, packed for this thread or a worker.
enum ResolveCall {
    /// Where an image really is.
    Image(PathBuf),
    /// Where an image really is, or will be.
    NewImage(PathBuf),
    /// Which file a caller's descriptor is open on, by a duplicate of it.
    Opened(OwnedFd, Option<DescriptorPermit>),
    /// Whether the file of a path has other names.
    HardLinks(PathBuf),
}

/// The result of a [`ResolveCall`].
enum Found {
    Image(PathBuf, Option<FileId>),
    Opened(FileId),
    OneName,
}

impl ResolveCall {
    fn run(self, hard_links: HardLinks) -> Result<Found, LockError> {
        match self {
            Self::Image(path) => {
                let resolved = engine::resolve_image(&path, hard_links);
                resolved.map(|(path, id)| Found::Image(path, Some(id)))
            }
            Self::NewImage(path) => {
                let resolved = engine::resolve_new_image(&path, hard_links);
                resolved.map(|(path, id)| Found::Image(path, id))
            }
            Self::Opened(fd, _permit) => engine::id_of(fd.as_fd(), hard_links).map(Found::Opened),
            Self::HardLinks(path) => engine::refuse_hard_links(&path).map(|()| Found::OneName),
        }
    }

    fn queue(&self) -> CallQueue {
        match self {
            Self::Image(path) | Self::NewImage(path) | Self::HardLinks(path) => {
                CallQueue::of_path(path)
            }
            Self::Opened(fd, _) => CallQueue::Mount(engine::mount_of(fd.as_fd())),
        }
    }

    fn on_timeout(&self) -> OnTimeout {
        match self {
            Self::Opened(..) => OnTimeout::DropOnWorker,
            _ => OnTimeout::Remove,
        }
    }
}

impl Core {
    /// Finds the resource for a call that only looks: without a deadline, on this thread.
    pub(crate) fn resolve_to_look<'a>(
        &self,
        request: &'a Request<'_>,
    ) -> Result<ResolvedRequest<'a>, AcquireError> {
        self.resolve(request, Patience::Try)
    }

    /// Finds the resource that a request means, with system calls where its target needs them.
    pub(super) fn resolve<'a>(
        &self,
        request: &'a Request<'_>,
        patience: Patience<'_>,
    ) -> Result<ResolvedRequest<'a>, AcquireError> {
        let (target, settings) = (&request.target, &request.settings);
        let mut resolved = ResolvedRequest {
            spelling: target.text(),
            text: Cow::Borrowed(target.text()),
            spec: self.spec(settings),
            opened: None,
            image: None,
        };
        let direct = matches!(self.naming, OpenNaming::Direct);
        if direct && settings.auto_create && !matches!(target.0, TargetKind::Opened(..)) {
            let (name, why) = (target.text().to_owned(), InvalidRequest::AutoCreateInDirect);
            return Err(AcquireError::Invalid { name, why });
        }
        let fails = |error| failure::from_lock_error(error, target.text(), || target.path().into());
        let about = (target.text(), target.path());
        let call = match &target.0 {
            TargetKind::Image(path) => ResolveCall::Image(path.to_path_buf()),
            TargetKind::NewImage(path) => ResolveCall::NewImage(path.to_path_buf()),
            TargetKind::Opened(_, fd) => {
                let queue = CallQueue::Mount(engine::mount_of(*fd));
                let permit = blocking::permit_descriptor(self, about, patience.context(), &queue)?;
                ResolveCall::Opened(engine::duplicate(*fd).map_err(fails)?, permit)
            }
            // Asked here, since a request that joins a hold opens no file.
            TargetKind::Name(name) if direct && settings.hard_links == HardLinks::Refused => {
                ResolveCall::HardLinks(PathBuf::from(name))
            }
            TargetKind::Name(_) => return Ok(resolved),
        };
        let (on_timeout, links) = (call.on_timeout(), settings.hard_links);
        let queue = patience.context().map(|_| call.queue());
        let limits = (patience.context(), on_timeout);
        match blocking::call(self, about, limits, queue, move || call.run(links))? {
            Ok(Found::Image(path, image)) => {
                resolved.text = Cow::Owned(path.into_os_string());
                resolved.image = image;
            }
            Ok(Found::Opened(id)) => {
                if let TargetKind::Opened(_, fd) = &target.0 {
                    resolved.opened = Some(OpenedFile { fd: *fd, id, path: engine::path_of(*fd) });
                }
            }
            Ok(Found::OneName) => {}
            Err(error) => return Err(fails(error)),
        }
        Ok(resolved)
    }

    /// The settings of a request, with the space's where it has none.
    pub(super) fn spec(&self, settings: &Settings) -> LockSpec {
        LockSpec {
            mode: settings.mode,
            range: settings.range.unwrap_or(self.range),
            create: settings.auto_create,
            file_mode: self.file_mode,
            upgradable: settings.upgradable,
            hard_links: settings.hard_links,
        }
    }

    /// The file at the path that is the name, to compare with a hold through a caller's descriptor.
    pub(super) fn file_id_by_path(
        &self,
        name: &Name,
        patience: Patience<'_>,
    ) -> Result<FileId, AcquireError> {
        let text = name.text();
        if !matches!(self.naming, OpenNaming::Direct) {
            // A lock file, or memory, is never the file that a caller has open.
            let why = InvalidRequest::OtherFile;
            return Err(AcquireError::Invalid { name: text.to_owned(), why });
        }
        let path = PathBuf::from(text);
        let (about, limits) = ((text, &*path), (patience.context(), OnTimeout::Remove));
        let look = {
            let path = path.clone();
            move || engine::id_at(&path)
        };
        let looked = blocking::call(self, about, limits, Some(CallQueue::of_path(&path)), look)?;
        looked.map_err(|error| failure::from_lock_error(error, text, || path.clone()))
    }
}
