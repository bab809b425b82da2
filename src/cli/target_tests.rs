#![allow(clippy::unwrap_used)]
use std::os::unix::fs::symlink;

use super::*;

fn entries(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    names
}

fn prepare(path: &Path, no_clobber: bool) -> Result<Target, Failure> {
    Target::prepare(path, "object", no_clobber)
}

async fn written(target: Target, content: &'static [u8]) -> Result<(), Failure> {
    let mut writer = Writer::start(target);
    writer.write(Bytes::from_static(content)).await?;
    writer.finish().await
}

/// The same target with a temporary file that has a name.
fn fall_back(target: Target) -> Target {
    match target {
        Target::File(mut new) => {
            let parent = new.path.parent().unwrap();
            new.content = Content::Named(named(parent, &new.name).unwrap());
            Target::File(new)
        }
        stream => stream,
    }
}

#[tokio::test]
async fn a_file_appears_when_all_is_written_and_not_before() {
    for fallback in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut target = prepare(&path, true).unwrap();
        if fallback {
            target = fall_back(target);
        }
        let mut writer = Writer::start(target);
        writer.write(Bytes::from_static(b"abc")).await.unwrap();
        assert!(!path.exists());
        writer.finish().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
        assert_eq!(entries(dir.path()), ["f"]);
    }
}

#[tokio::test]
async fn a_target_given_up_leaves_nothing() {
    for fallback in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut target = prepare(&dir.path().join("f"), false).unwrap();
        if fallback {
            target = fall_back(target);
        }
        let mut writer = Writer::start(target);
        writer.write(Bytes::from_static(b"abc")).await.unwrap();
        drop(writer);
        assert!(entries(dir.path()).is_empty());
    }
}

#[tokio::test]
async fn an_existing_file_is_replaced_with_its_permissions_or_kept() {
    for fallback in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"old").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let failure = prepare(&path, true).unwrap_err();
        assert_eq!(failure.code(), EXISTS);
        let mut target = prepare(&path, false).unwrap();
        if fallback {
            target = fall_back(target);
        }
        written(target, b"new").await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(entries(dir.path()), ["f"]);
    }
}

#[tokio::test]
async fn a_file_that_appears_meanwhile_is_not_clobbered() {
    for fallback in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut target = prepare(&path, true).unwrap();
        if fallback {
            target = fall_back(target);
        }
        std::fs::write(&path, b"other").unwrap();
        let failure = written(target, b"new").await.unwrap_err();
        assert_eq!(failure.code(), EXISTS, "{failure:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
        assert_eq!(entries(dir.path()), ["f"]);
    }
}

#[tokio::test]
async fn a_directory_needs_its_slash_and_takes_the_objects_name() {
    let dir = tempfile::tempdir().unwrap();
    let failure = prepare(dir.path(), false).unwrap_err();
    assert!(failure.text().contains("is a directory") && failure.text().contains("slash"));
    let slash = PathBuf::from(format!("{}/", dir.path().display()));
    written(prepare(&slash, false).unwrap(), b"abc")
        .await
        .unwrap();
    assert_eq!(entries(dir.path()), ["object"]);
    for hostile in ["..", ".", ""] {
        assert!(Target::prepare(&slash, hostile, false).is_err());
    }
}

#[test]
fn a_missing_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let failure = prepare(&dir.path().join("none/f"), false).unwrap_err();
    assert_eq!(failure.code(), NO_SUCH);
    assert!(failure.text().contains("no directory"), "{failure:?}");
}

#[tokio::test]
async fn a_symbolic_link_stays_and_a_device_is_written_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (real, alias) = (dir.path().join("real"), dir.path().join("alias"));
    std::fs::write(&real, b"old").unwrap();
    symlink("real", &alias).unwrap();
    written(prepare(&alias, false).unwrap(), b"new")
        .await
        .unwrap();
    assert!(alias.is_symlink());
    assert_eq!(std::fs::read(&real).unwrap(), b"new");
    assert!(prepare(Path::new("/dev/null"), false).unwrap().is_stream());
}

#[tokio::test]
async fn a_full_disk_is_named_and_leaves_nothing() {
    let file = File::options().write(true).open("/dev/full").unwrap();
    let mut writer = Writer::start(Target::Stream(file));
    writer.write(Bytes::from_static(b"abc")).await.unwrap();
    let failure = writer.finish().await.unwrap_err();
    assert!(failure.text().contains("no space left"), "{failure:?}");
}
