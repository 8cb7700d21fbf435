//! libvirt's own lockspace, from `libvirt.so.0`, loaded at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use libloading::Library;

/// `VIR_LOCK_SPACE_ACQUIRE_SHARED`
pub(crate) const SHARED: c_uint = 1;
/// `VIR_LOCK_SPACE_ACQUIRE_AUTOCREATE`
pub(crate) const AUTO_CREATE: c_uint = 2;

type Space = *mut c_void;
type Json = *mut c_void;

/// The functions, as `src/util/virlockspace.h` and `virjson.h` declare them.
pub(crate) struct Libvirt {
    new: unsafe extern "C" fn(*const c_char) -> Space,
    free: unsafe extern "C" fn(Space),
    acquire: unsafe extern "C" fn(Space, *const c_char, libc::pid_t, c_uint) -> c_int,
    release: unsafe extern "C" fn(Space, *const c_char, libc::pid_t) -> c_int,
    release_owner: unsafe extern "C" fn(Space, libc::pid_t) -> c_int,
    pre_exec: unsafe extern "C" fn(Space) -> Json,
    post_exec: unsafe extern "C" fn(Json) -> Space,
    to_string: unsafe extern "C" fn(Json, bool) -> *mut c_char,
    from_string: unsafe extern "C" fn(*const c_char) -> Json,
    json_free: unsafe extern "C" fn(Json),
    _library: Library,
}

extern "C" fn silent(_: *mut c_void, _: *mut c_void) {}

impl Libvirt {
    pub(crate) fn load() -> Result<Arc<Self>, libloading::Error> {
        // SAFETY: the library's constructors do nothing that concerns us, and every symbol has the
        // type that libvirt's headers give it.
        unsafe {
            let library = Library::new("libvirt.so.0")?;
            let initialize = *library.get::<unsafe extern "C" fn() -> c_int>(b"virInitialize\0")?;
            let set_error_func = *library.get::<unsafe extern "C" fn(
                *mut c_void,
                Option<extern "C" fn(*mut c_void, *mut c_void)>,
            )>(b"virSetErrorFunc\0")?;
            let loaded = Self {
                new: *library.get(b"virLockSpaceNew\0")?,
                free: *library.get(b"virLockSpaceFree\0")?,
                acquire: *library.get(b"virLockSpaceAcquireResource\0")?,
                release: *library.get(b"virLockSpaceReleaseResource\0")?,
                release_owner: *library.get(b"virLockSpaceReleaseResourcesForOwner\0")?,
                pre_exec: *library.get(b"virLockSpacePreExecRestart\0")?,
                post_exec: *library.get(b"virLockSpaceNewPostExecRestart\0")?,
                to_string: *library.get(b"virJSONValueToString\0")?,
                from_string: *library.get(b"virJSONValueFromString\0")?,
                json_free: *library.get(b"virJSONValueFree\0")?,
                _library: library,
            };
            initialize();
            set_error_func(std::ptr::null_mut(), Some(silent));
            Ok(Arc::new(loaded))
        }
    }

    /// A space on lock files in `directory`, or a direct one.
    pub(crate) fn space(self: &Arc<Self>, directory: Option<&CStr>) -> LibvirtSpace {
        let directory = directory.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: null, or a string that lives through the call.
        let space = NonNull::new(unsafe { (self.new)(directory) });
        LibvirtSpace { space: space.expect("virLockSpaceNew"), libvirt: Arc::clone(self) }
    }

    /// A space from the text of its document.
    pub(crate) fn restored(self: &Arc<Self>, text: &CStr) -> LibvirtSpace {
        // SAFETY: the text lives through the call; the object is freed once, after its last use.
        let space = unsafe {
            let object = (self.from_string)(text.as_ptr());
            let space = (self.post_exec)(object);
            (self.json_free)(object);
            space
        };
        let space = NonNull::new(space).expect("virLockSpaceNewPostExecRestart");
        LibvirtSpace { space, libvirt: Arc::clone(self) }
    }
}

pub(crate) struct LibvirtSpace {
    space: NonNull<c_void>,
    libvirt: Arc<Libvirt>,
}

// SAFETY: the space has a mutex of its own.
unsafe impl Send for LibvirtSpace {}
// SAFETY: the same.
unsafe impl Sync for LibvirtSpace {}

impl LibvirtSpace {
    pub(crate) fn acquire(&self, name: &CStr, owner: i32, flags: c_uint) -> bool {
        // SAFETY: the space lives, and the name lives through the call.
        unsafe { (self.libvirt.acquire)(self.space.as_ptr(), name.as_ptr(), owner, flags) == 0 }
    }

    pub(crate) fn release(&self, name: &CStr, owner: i32) {
        // SAFETY: the same.
        let result = unsafe { (self.libvirt.release)(self.space.as_ptr(), name.as_ptr(), owner) };
        assert_eq!(result, 0, "virLockSpaceReleaseResource");
    }

    /// Tells how many resources it has released.
    pub(crate) fn release_owner(&self, owner: i32) -> i32 {
        // SAFETY: the space lives.
        unsafe { (self.libvirt.release_owner)(self.space.as_ptr(), owner) }
    }

    /// The text of its document.
    pub(crate) fn snapshot(&self) -> CString {
        // SAFETY: the space lives; the object and the text are freed once, after their last use;
        // the text ends with a NUL, and comes from the C library's allocator.
        unsafe {
            let object = (self.libvirt.pre_exec)(self.space.as_ptr());
            let text = (self.libvirt.to_string)(object, false);
            assert!(!text.is_null(), "virLockSpacePreExecRestart");
            let copy = CStr::from_ptr(text).to_owned();
            libc::free(text.cast());
            (self.libvirt.json_free)(object);
            copy
        }
    }
}

impl Drop for LibvirtSpace {
    fn drop(&mut self) {
        // SAFETY: this handle is the only one.
        unsafe { (self.libvirt.free)(self.space.as_ptr()) }
    }
}
