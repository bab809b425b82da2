//! Relative paths as bytes, in the order of a sorted walk.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::Why;

/// Bytes of a path, at most: PATH_MAX of Linux.
pub const MAX_PATH: usize = 4096;
/// Bytes of one name, at most: NAME_MAX of Linux.
const MAX_NAME: usize = 255;

/// A path below an archive's root: bytes, with no component that a system
/// would fold. The root itself has no components.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// The archive's root.
    #[must_use]
    pub fn root() -> Self {
        Self(Vec::new())
    }

    /// A path below the root.
    ///
    /// # Errors
    /// It is empty or absolute, has an empty component, `.`, `..` or a NUL,
    /// or is longer than the system allows.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, Why> {
        let bytes = bytes.into();
        if bytes.len() > MAX_PATH {
            return Err(format!("a path of more than {MAX_PATH} bytes").into());
        }
        for name in bytes.split(|byte| *byte == b'/') {
            match name {
                b"" => return Err("a path that is absolute or has an empty component".into()),
                b"." | b".." => return Err("a path with `.` or `..` in it".into()),
                name if name.contains(&0) => return Err("a path with a NUL in it".into()),
                name if name.len() > MAX_NAME => {
                    return Err(format!("a name of more than {MAX_NAME} bytes").into());
                }
                _ => {}
            }
        }
        Ok(Self(bytes))
    }

    /// The path of `name` in this directory.
    ///
    /// # Errors
    /// As for [`RelPath::new`].
    pub fn join(&self, name: &[u8]) -> Result<Self, Why> {
        if name.contains(&b'/') {
            return Err("a name with a slash in it".into());
        }
        if self.is_root() {
            return Self::new(name);
        }
        Self::new([&self.0, b"/".as_slice(), name].concat())
    }

    /// Whether it is the archive's root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Its bytes; none for the root.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As text, if it is UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// As a path of the system; empty for the root.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Its names, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
    }

    /// The directory it is in; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let slash = self.0.iter().rposition(|byte| *byte == b'/');
        Some(Self(self.0[..slash.unwrap_or(0)].to_vec()))
    }

    /// Whether it is `directory` or lies below it.
    #[must_use]
    pub fn is_within(&self, directory: &Self) -> bool {
        directory.is_root()
            || self
                .0
                .strip_prefix(directory.0.as_slice())
                .is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b'/'))
    }
}

/// Component by component, bytewise: a directory, then all in it, then its
/// next sibling. As no name holds a NUL, a slash that sorts as one does it.
impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> Ordering {
        let keys = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
        self.0.iter().map(keys).cmp(other.0.iter().map(keys))
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// For people: what is not UTF-8 is replaced.
impl std::fmt::Display for RelPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl std::fmt::Debug for RelPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", OsStr::from_bytes(&self.0))
    }
}
