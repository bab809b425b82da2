//! Which entries are wanted: plain paths, and patterns as in `.gitignore`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::cli::failure::Failure;
use crate::manifest::RelPath;

/// What is wanted of an archive.
pub(super) struct Selection {
    /// Paths that name an entry and all below it.
    paths: Vec<RelPath>,
    include: Option<Gitignore>,
    exclude: Gitignore,
}

impl Selection {
    pub(super) fn new(patterns: &[OsString], exclude: &[String]) -> Result<Self, Failure> {
        let mut paths = Vec::new();
        let mut globs = Vec::new();
        for pattern in patterns {
            let bytes = pattern.as_bytes();
            let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
            let plain = bytes.strip_prefix(b"/").unwrap_or(bytes);
            let plain = plain.strip_suffix(b"/").unwrap_or(plain);
            if let Ok(path) = RelPath::new(plain) {
                paths.push(path);
            }
            // A name that is not UTF-8 stands for itself alone.
            if let Some(text) = OsStr::from_bytes(bytes).to_str() {
                globs.push(text.to_owned());
            }
        }
        Ok(Self {
            include: match patterns.is_empty() {
                true => None,
                false => Some(globset(&globs)?),
            },
            exclude: globset(exclude)?,
            paths,
        })
    }

    /// Whether nothing is left out.
    pub(super) fn is_all(&self) -> bool {
        self.include.is_none() && self.exclude.is_empty()
    }

    /// Whether an entry is wanted.
    pub(super) fn takes(&self, path: &RelPath, is_dir: bool) -> bool {
        if path.is_root() {
            return self.is_all();
        }
        let hit = |globs: &Gitignore| {
            globs
                .matched_path_or_any_parents(path.as_path(), is_dir)
                .is_ignore()
        };
        let included = match &self.include {
            None => true,
            Some(globs) => self.paths.iter().any(|one| path.is_within(one)) || hit(globs),
        };
        included && !hit(&self.exclude)
    }
}

fn globset(patterns: &[String]) -> Result<Gitignore, Failure> {
    let mut builder = GitignoreBuilder::new("");
    for pattern in patterns {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::usage(format!("{pattern:?} is no pattern: {error}"))
        };
        // Neither a comment nor an exception: every pattern asks for something.
        let line = match pattern.as_bytes().first() {
            Some(b'#' | b'!') => format!("\\{pattern}"),
            _ => pattern.clone(),
        };
        builder.add_line(None, &line).map_err(|e| wrong(&e))?;
    }
    builder
        .build()
        .map_err(|error| Failure::usage(format!("the patterns cannot be used: {error}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn takes(patterns: &[&str], exclude: &[&str], path: &[u8], is_dir: bool) -> bool {
        let patterns: Vec<OsString> = patterns.iter().map(Into::into).collect();
        let exclude: Vec<String> = exclude.iter().map(|s| (*s).to_owned()).collect();
        let selection = Selection::new(&patterns, &exclude).unwrap();
        selection.takes(&RelPath::new(path).unwrap(), is_dir)
    }

    #[test]
    fn a_path_names_itself_and_all_below_it() {
        assert!(takes(&["etc/ssh"], &[], b"etc/ssh", true));
        assert!(takes(&["etc/ssh/"], &[], b"etc/ssh/a/b", false));
        assert!(takes(&["./etc/ssh"], &[], b"etc/ssh/a", false));
        assert!(!takes(&["etc/ssh"], &[], b"etc/sshd", false));
        assert!(!takes(&["etc/ssh"], &[], b"old/etc/ssh", false));
        // A name with what is special in patterns is still a name.
        assert!(takes(&["a[1].txt"], &[], b"a[1].txt", false));
        assert!(takes(&["#a#"], &[], b"x/#a#", false));
        assert!(takes(&["!a"], &[], b"!a", false));
    }

    #[test]
    fn a_pattern_without_a_slash_is_a_name_at_any_depth() {
        assert!(takes(&["*.pdf"], &[], b"a/b/c.pdf", false));
        assert!(takes(&["photos"], &[], b"a/photos/x.jpg", false));
        assert!(!takes(&["a/*.pdf"], &[], b"a/b/c.pdf", false));
        assert!(takes(&["a/**/*.pdf"], &[], b"a/b/c.pdf", false));
        assert!(takes(&["b\u{e9}*"], &[], "b\u{e9}x".as_bytes(), false));
    }

    #[test]
    fn excluded_is_excluded_and_names_need_not_be_text() {
        assert!(!takes(&[], &["*.tmp"], b"a/b.tmp", false));
        assert!(takes(&[], &["*.tmp"], b"a/b", false));
        assert!(!takes(&["a"], &["a/cache"], b"a/cache/x", false));
        assert!(takes(&["a*"], &[], b"a\xff", false));
        assert!(takes(&[], &[], b"\xff/\xfe", false));
    }
}
