//! What is passed comes back, byte for byte.

use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

use rustix::fs::MemfdFlags;

use super::support::{pattern, write_pattern};
use super::{PART, Rig, target};

/// Bytes of a frame, the default.
const F: u64 = 256 << 10;

#[test]
fn rule_26_a_passed_file_is_stored_as_if_it_had_been_sent() {
    let Some(rig) = Rig::new() else { return };
    for len in [
        0,
        1,
        F - 1,
        F,
        F + 1,
        PART - 1,
        PART,
        2 * PART + F,
        3 * PART + 17,
    ] {
        let mut file = rig.file(len, len);
        let receipt = rig.put("whole", &file, len);
        assert_eq!(receipt.status, 201, "{len}: {}", receipt.text());
        assert_eq!(receipt.json()["plaintext_size"], len);
        assert!(rig.read("whole") == pattern(len, len), "{len}");
        // The position, which we share with the agent, went on as by reading.
        assert_eq!(file.stream_position().unwrap(), len);
    }
}

#[test]
fn rule_26_a_file_is_read_from_its_position_and_also_if_it_has_no_name() {
    let Some(rig) = Rig::new() else { return };
    let (len, from) = (2 * PART, 12_345);
    let mut file = rig.file(1, len);
    file.seek(SeekFrom::Start(from)).unwrap();
    assert_eq!(rig.put("rest", &file, len - from).status, 201);
    let skip = usize::try_from(from).unwrap();
    assert!(rig.read("rest") == pattern(1, len)[skip..]);

    // In memory, readable and writable.
    let memory = rustix::fs::memfd_create("secret", MemfdFlags::CLOEXEC).unwrap();
    let mut memory = std::fs::File::from(memory);
    memory.write_all(b"never on a disk").unwrap();
    memory.rewind().unwrap();
    assert_eq!(rig.put("memory", &memory, 15).status, 201);
    assert_eq!(rig.read("memory"), b"never on a disk");
}

#[test]
fn rule_26_the_command_line_passes_files_and_says_what_went_wrong_as_ever() {
    let Some(rig) = Rig::new() else { return };
    let len = 3 * PART + 1;
    let (source, copy) = (rig.path("source"), rig.path("copy"));
    write_pattern(&source, 2, len);
    let (from, to) = (source.display().to_string(), copy.display().to_string());
    rig.agent.cli(["put", &from, "s3://bucket/cli"]).ok();
    assert!(rig.agent.log().contains("\"descriptor\":true"));
    rig.agent.cli(["get", "s3://bucket/cli", &to]).ok();
    assert!(std::fs::read(&copy).unwrap() == pattern(2, len));
    rig.agent
        .cli(["get", "--range", "5-9", "s3://bucket/cli", &to])
        .ok();
    assert_eq!(std::fs::read(&copy).unwrap(), pattern(2, len)[5..10]);

    // Standard input that is a file is passed too, from where it stands.
    let script = format!(
        "{{ dd bs=100 count=1 of=/dev/null status=none; strongroom put - s3://bucket/rest; }} < {from}"
    );
    rig.agent.bash(&script).ok();
    assert!(rig.read("rest") == pattern(2, len)[100..]);

    // Not a file that the agent reads, but one that it is sent.
    rig.agent
        .cli(["put", "/proc/self/status", "s3://bucket/proc"])
        .ok();
    assert!(rig.read("proc").starts_with(b"Name:"));
}

#[test]
fn rule_26_verified_plaintext_goes_into_the_file_that_was_passed() {
    let Some(rig) = Rig::new() else { return };
    for len in [0, 1, F, 3 * PART + 17] {
        let plain = pattern(len, len);
        let reply = rig.agent.http("PUT", &target("whole"), &[], &plain);
        assert_eq!(reply.status, 201);
        let mut file = tempfile::tempfile().unwrap();
        let headers = [("Strongroom-Descriptor", "0")];
        let reply = rig.request(
            "GET",
            &target("whole"),
            &headers,
            &[std::os::fd::AsFd::as_fd(&file)],
        );
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.content_length(), Some(0));
        let written = reply.header("strongroom-descriptor").unwrap();
        assert_eq!(written, len.to_string());
        file.rewind().unwrap();
        let mut got = Vec::new();
        file.read_to_end(&mut got).unwrap();
        assert!(got == plain, "{len}");
    }
}

#[test]
fn rule_26_nothing_is_written_where_something_is_or_where_nothing_may_be() {
    let Some(rig) = Rig::new() else { return };
    assert_eq!(
        rig.agent.http("PUT", &target("k"), &[], b"plain").status,
        201
    );
    let headers = [("Strongroom-Descriptor", "0")];
    let path = rig.path("full");
    std::fs::write(&path, "something").unwrap();
    let open = |options: &mut OpenOptions| options.open(&path).unwrap();
    let full = open(OpenOptions::new().write(true));
    let readable = open(OpenOptions::new().read(true));
    let empty = rig.path("empty");
    let append = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&empty)
        .unwrap();
    let directory = std::fs::File::open(rig.dir.path()).unwrap();
    let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
    for file in [full, readable, append, directory, null] {
        let file = std::os::fd::AsFd::as_fd(&file);
        let reply = rig.request("GET", &target("k"), &headers, &[file]);
        reply.fails("descriptor-refused", &[]);
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"something");
    assert_eq!(std::fs::read(&empty).unwrap(), b"");
}
