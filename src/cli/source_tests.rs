#![allow(clippy::unwrap_used)]
use std::io::{Seek as _, Write as _};

use super::*;

/// Pumps a source dry: the bytes that were let through, and the verdict.
fn pumped(source: Source) -> (Vec<u8>, Result<(), Failure>) {
    let mut out = Vec::new();
    let result = source.pump(|chunk| {
        out.extend_from_slice(&chunk);
        true
    });
    (out, result)
}

fn file_with(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

fn command(script: &str) -> Source {
    Source::command(&["sh".into(), "-c".into(), script.into()], None).unwrap()
}

#[test]
fn files_of_all_sizes_come_through_whole() {
    for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17] {
        let content: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let file = file_with(&content);
        let source = Source::open(file.path(), None).unwrap();
        assert_eq!(source.length, Some(size as u64));
        let (out, result) = pumped(source);
        result.unwrap();
        assert!(out == content, "size {size}");
    }
}

#[test]
fn a_file_that_changes_meanwhile_never_gives_its_last_byte() {
    type Change = fn(&File);
    let changes: [(&str, Change); 4] = [
        ("grows", |mut file| file.write_all(b"x").unwrap()),
        ("shrinks", |file| file.set_len(10).unwrap()),
        ("is emptied", |file| file.set_len(0).unwrap()),
        ("is overwritten", |mut file| {
            file.rewind().unwrap();
            file.write_all(b"y").unwrap();
        }),
    ];
    for size in [100, 2 * CHUNK] {
        for (how, change) in changes {
            let file = file_with(&vec![7; size]);
            let source = Source::open(file.path(), None).unwrap();
            // Time stamps advance with the kernel's clock tick.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change(file.as_file());
            let (out, result) = pumped(source);
            let failure = result.expect_err(how);
            assert!(
                failure.text().contains("changed while it was read"),
                "{how}"
            );
            assert!(out.len() < size, "{how}: {} of {size}", out.len());
        }
    }
}

#[test]
fn an_empty_file_that_grows_is_noticed() {
    let mut file = file_with(b"");
    let source = Source::open(file.path(), None).unwrap();
    file.write_all(b"x").unwrap();
    assert!(pumped(source).1.is_err());
}

#[test]
fn files_that_the_kernel_makes_up_are_read_to_their_end() {
    let source = Source::open(Path::new("/proc/self/status"), None).unwrap();
    assert_eq!(source.length, None);
    let (out, result) = pumped(source);
    result.unwrap();
    assert!(out.starts_with(b"Name:"));
}

#[test]
fn sources_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let failure = Source::open(dir.path(), None).unwrap_err();
    assert!(failure.text().contains("is a directory"), "{failure:?}");
    let failure = Source::open(&dir.path().join("none"), None).unwrap_err();
    assert_eq!(failure.code(), crate::cli::failure::NO_SUCH);
    let file = file_with(b"abc");
    let failure = Source::open(file.path(), Some(4)).unwrap_err();
    assert!(failure.text().contains("3 bytes"), "{failure:?}");
}

#[test]
fn a_pipe_must_have_the_size_given() {
    let through = |size: u64| {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"12345").unwrap();
        drop(writer);
        pumped(Source {
            name: "standard input".into(),
            length: Some(size),
            feed: Feed::Stream(File::from(std::os::fd::OwnedFd::from(reader))),
            begun: Vec::new(),
        })
    };
    let (out, result) = through(5);
    result.unwrap();
    assert_eq!(out, b"12345");
    for wrong in [0, 4, 6] {
        let (out, result) = through(wrong);
        let failure = result.expect_err("size");
        assert!(failure.text().contains("--size"), "{failure:?}");
        assert!(out.len() as u64 != wrong || wrong == 0, "{wrong}");
    }
}

#[test]
fn a_command_that_fails_never_gives_its_last_bytes() {
    let (out, result) = pumped(command("printf hello"));
    result.unwrap();
    assert_eq!(out, b"hello");
    for (script, words) in [
        ("printf hello; exit 3", "exit status: 3"),
        ("printf hello; kill -9 $$", "signal: 9"),
        ("exec >&-; exit 4", "exit status: 4"),
    ] {
        let (out, result) = pumped(command(script));
        let failure = result.expect_err(script);
        assert!(failure.text().contains(words), "{failure:?}");
        assert!(out.is_empty());
    }
    let failure = Source::command(&["/no/such/program".into()], None).unwrap_err();
    assert_eq!(failure.code(), crate::cli::failure::NO_SUCH);
}

#[test]
fn a_command_whose_output_nobody_wants_is_ended() {
    let source = command("yes");
    let start = std::time::Instant::now();
    source.pump(|_| false).unwrap();
    assert!(start.elapsed() < std::time::Duration::from_secs(10));
}
