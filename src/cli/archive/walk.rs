//! The walk: what is in the directories, in path order, with the caller's
//! rights. Symbolic links are never followed.

use std::fs::Metadata;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ignore::WalkBuilder;
use ignore::overrides::OverrideBuilder;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio::sync::mpsc;

use super::options::Plan;
use crate::cli::failure::Failure;
use crate::cli::ui::shown;
use crate::manifest::{self, RelPath};

/// The files that say what is left out, with the syntax of .gitignore.
const IGNORE: &str = ".strongroomignore";
/// What to do about what cannot be read.
pub(super) const REST: &str =
    "the rest is archived; run it as a user who may read this, or leave it out with --exclude";
/// Found things between the walk and the plan. Ours: enough that neither
/// waits, and nothing of the budget.
const QUEUE: usize = 1024;

/// A directory that is archived.
pub(super) struct Root {
    dir: OwnedFd,
    /// Where it is, without links.
    pub(super) path: PathBuf,
    /// Its path in the archive.
    pub(super) name: RelPath,
}

impl Root {
    /// Opens something below it. Whoever may write to the tree cannot make
    /// this leave it: no link on the way is followed.
    pub(super) fn open(&self, within: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let within = if within.as_os_str().is_empty() {
            Path::new(".")
        } else {
            within
        };
        let mut flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A FIFO or a terminal at the place of a file holds nobody up; a mere
        // path takes neither flag.
        if !flags.contains(OFlags::PATH) {
            flags |= OFlags::NONBLOCK | OFlags::NOCTTY;
        }
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(
            &self.dir,
            within,
            flags,
            Mode::empty(),
            resolve,
        )?)
    }
}

/// Something that is there.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) path: RelPath,
    pub(super) root: Arc<Root>,
    /// Its path below the root's directory.
    pub(super) within: PathBuf,
    pub(super) meta: Metadata,
}

impl Found {
    /// Its whole path, for people.
    pub(super) fn shown(&self) -> String {
        shown_below(&self.root.path, &self.within)
    }
}

pub(super) fn shown_below(root: &Path, within: &Path) -> String {
    let path = if within.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(within)
    };
    shown(&path.display().to_string())
}

/// What the walk comes upon.
pub(super) enum Step {
    Found(Found),
    /// Something that could not be looked at, nor what is below it.
    Problem(Option<RelPath>, Failure),
}

/// Opens the directories: in the archive they are the root itself, or lie
/// below their own names if there are several.
pub(super) fn roots(plan: &Plan) -> Result<Vec<Arc<Root>>, Failure> {
    let several = plan.dirs.len() > 1;
    let mut roots = Vec::new();
    for dir in &plan.dirs {
        let cannot = |error: &io::Error| {
            Failure::io(format!("cannot archive {}", dir.display()), error)
                .hint("archive takes directories that are there: is a disk not mounted?")
        };
        let path = dir.canonicalize().map_err(|error| cannot(&error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| cannot(&error.into()))?;
        let name = if several {
            let own = dir.file_name().or(path.file_name());
            let own = own.ok_or_else(|| {
                Failure::usage(format!("{} has no name of its own", dir.display()))
                    .hint("archive it alone")
            })?;
            RelPath::new(own.as_bytes()).map_err(|why| Failure::usage(why.into_owned()))?
        } else {
            RelPath::root()
        };
        roots.push(Arc::new(Root {
            dir: opened,
            path,
            name,
        }));
    }
    roots.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(twins) = roots.windows(2).find(|two| two[0].name == two[1].name) {
        return Err(Failure::usage(format!(
            "{} and {} have the same name",
            twins[0].path.display(),
            twins[1].path.display()
        ))
        .hint("archive them to different prefixes"));
    }
    Ok(roots)
}

/// Walks on a thread of its own.
pub(super) fn start(plan: &Plan, roots: &[Arc<Root>]) -> Result<mpsc::Receiver<Step>, Failure> {
    let mut walks = Vec::new();
    for root in roots {
        walks.push((Arc::clone(root), builder(plan, &root.path)?));
    }
    let (sender, steps) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        for (root, builder) in walks {
            for step in builder.build() {
                // A line of an ignore file that is no pattern leaves nothing
                // out, and its writer should know.
                let odd = step.as_ref().ok().and_then(|entry| entry.error());
                let odd = odd.map(|error| {
                    Failure::new(
                        1,
                        format!("cannot use {IGNORE}: {}", shown(&error.to_string())),
                    )
                });
                if let Some(failure) = odd
                    && sender.blocking_send(Step::Problem(None, failure)).is_err()
                {
                    return;
                }
                if sender.blocking_send(look(&root, step)).is_err() {
                    return;
                }
            }
        }
    });
    Ok(steps)
}

fn builder(plan: &Plan, root: &Path) -> Result<WalkBuilder, Failure> {
    let mut globs = OverrideBuilder::new(root);
    let exclude = plan.exclude.iter().map(|glob| format!("!{glob}"));
    for glob in plan.include.iter().cloned().chain(exclude) {
        globs
            .add(&glob)
            .map_err(|error| Failure::usage(error.to_string()))?;
    }
    let globs = globs
        .build()
        .map_err(|error| Failure::usage(error.to_string()))?;
    let mut builder = WalkBuilder::new(root);
    builder
        .standard_filters(false)
        .follow_links(false)
        .same_file_system(plan.one_file_system)
        .overrides(globs)
        .add_custom_ignore_filename(IGNORE)
        .sort_by_file_name(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(builder)
}

fn look(root: &Arc<Root>, step: Result<ignore::DirEntry, ignore::Error>) -> Step {
    let place = |path: &Path| {
        let within = path.strip_prefix(&root.path).unwrap_or(path).to_owned();
        let below = [root.name.as_bytes(), within.as_os_str().as_bytes()];
        let below = below.into_iter().filter(|part| !part.is_empty());
        let whole = below.collect::<Vec<_>>().join(&b'/');
        let path = if whole.is_empty() {
            Ok(RelPath::root())
        } else {
            RelPath::new(whole)
        };
        (within, path)
    };
    match step {
        Ok(entry) => {
            let (within, path) = place(entry.path());
            let cannot = format!("cannot archive {}", shown_below(&root.path, &within));
            let path = match path {
                Ok(path) => path,
                Err(why) => {
                    return Step::Problem(None, Failure::new(1, format!("{cannot}: {why}")));
                }
            };
            match entry.metadata() {
                Ok(meta) => Step::Found(Found {
                    path,
                    root: Arc::clone(root),
                    within,
                    meta,
                }),
                Err(error) => Step::Problem(Some(path), problem(&cannot, error)),
            }
        }
        Err(error) => {
            let at = path_of(&error).map(place);
            let (within, path) = at.unwrap_or_else(|| (PathBuf::new(), Ok(root.name.clone())));
            let cannot = format!("cannot archive {}", shown_below(&root.path, &within));
            Step::Problem(path.ok(), problem(&cannot, error))
        }
    }
}

fn problem(cannot: &str, error: ignore::Error) -> Failure {
    let why = match error.io_error() {
        Some(io) => crate::cli::failure::why(io),
        None => shown(&error.to_string()),
    };
    Failure::new(1, format!("{cannot}: {why}")).hint(REST)
}

fn path_of(error: &ignore::Error) -> Option<&Path> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => {
            path_of(err)
        }
        _ => None,
    }
}

/// For the head of a manifest.
pub(super) fn described(roots: &[Arc<Root>]) -> Vec<manifest::Root> {
    roots
        .iter()
        .map(|root| manifest::Root {
            path: root.path.to_string_lossy().into_owned(),
            name: root.name.to_string(),
        })
        .collect()
}
