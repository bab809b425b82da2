//! Rule 1 over everything that writes: one data key and message id, one
//! header.

use std::collections::{BTreeMap, BTreeSet};

use strongroom::message::{Header, Parsed, Permit};

use super::*;

const OLD: [u8; 32] = [0x3a; 32];
const NEW: [u8; 32] = [0x3b; 32];

/// The data key of a header's first EDK, by its known wrapping key.
fn data_key(header: &Header) -> Vec<u8> {
    let parts = header.edks()[0].raw_aes_parts().unwrap();
    let wrapping = if parts.key_name == KEY { OLD } else { NEW };
    open(&wrapping, parts.iv, parts.ciphertext, header)
}

fn open(wrapping: &[u8; 32], iv: &[u8; 12], ciphertext: &[u8], header: &Header) -> Vec<u8> {
    let aad = header.keyring_aad(&strongroom::message::Context::new());
    let key = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, wrapping).unwrap();
    let nonce = ring::aead::Nonce::assume_unique_for_key(*iv);
    let mut bytes = ciphertext.to_vec();
    ring::aead::LessSafeKey::new(key)
        .open_in_place(nonce, ring::aead::Aad::from(aad), &mut bytes)
        .unwrap()
        .to_vec()
}

fn parse(bytes: &[u8]) -> Header {
    match Header::parse(bytes, Permit::default()) {
        Ok(Parsed::Header(header)) => *header,
        other => panic!("no header: {other:?}"),
    }
}

/// All headers that stand anywhere in a bucket: in objects, metadata, slot 0.
fn headers(weed: &Weed, bucket: &str) -> Vec<Header> {
    let mut all = Vec::new();
    for version in weed.list_versions(bucket, "") {
        if version.delete_marker {
            continue;
        }
        let bytes = weed
            .raw_get_version(bucket, &version.key, Some(&version.id))
            .unwrap();
        if version.key.starts_with(".strongroom/keyslots/") {
            if version.key.ends_with("/0") {
                all.push(parse(&bytes));
            }
            continue;
        }
        all.push(parse(&bytes));
        let head = weed.client.head_object().bucket(bucket).key(&version.key);
        let head = weed.wait(head.version_id(&version.id).send()).unwrap();
        let told = head.metadata().unwrap().get("strongroom-header").cloned();
        if let Some(text) = told {
            all.push(parse(
                &data_encoding::BASE64.decode(text.as_bytes()).unwrap(),
            ));
        }
    }
    all
}

#[test]
fn one_data_key_one_message_id_one_header() {
    let hsm = Hsm::with_key(&OLD);
    hsm.create(&KeySpec::new(NEXT).bytes(&NEW));
    hsm.configure_key(
        NEXT,
        NEXT,
        &format!("imported = true\nring = {KEY:?}\nuse = \"decrypt\"\n"),
    );
    let weed = Weed::shared();
    let bucket = weed.versioned_bucket("one-header");
    let agent = Agent::start(&hsm, weed, |config| {
        config["s3"]["part_size"] = value("5 MiB");
    });
    let place = |key: &str| format!("s3://{bucket}/{key}");
    let long = format!("note={}", "y".repeat(3000));
    // Put, put again at the same place, with a header in slot 0, in parts, and
    // one whose store was away in between.
    put(&agent, &bucket, "a", &[], b"same");
    put(&agent, &bucket, "a", &[], b"same");
    put(
        &agent,
        &bucket,
        "long",
        &[("Strongroom-Context", &long)],
        b"long",
    );
    put(&agent, &bucket, "parts", &[], &pattern(1, 11 << 20));
    weed.pause();
    thread::scope(|scope| {
        scope.spawn(|| put(&agent, &bucket, "retried", &[], b"retried"));
        thread::sleep(std::time::Duration::from_secs(2));
        weed.resume();
    });
    hand_over(&agent);
    rewrap_all(&agent, &place(""), &[]);
    rewrap_all(&agent, &place(""), &[]);
    agent.cli(["cp", &place("a"), &place("a")]).ok();
    agent.cli(["cp", &place("long"), &place("copy")]).ok();
    agent.cli(["mv", &place("parts"), &place("moved")]).ok();

    let all = headers(weed, &bucket);
    let mut by_id = BTreeMap::<String, BTreeSet<Vec<u8>>>::new();
    let mut by_key = BTreeMap::<Vec<u8>, BTreeSet<String>>::new();
    for header in &all {
        let id = header.message_id().to_string();
        by_id
            .entry(id.clone())
            .or_default()
            .insert(header.bytes().to_vec());
        by_key.entry(data_key(header)).or_default().insert(id);
    }
    assert!(
        by_id.len() >= 8 && by_key.len() == by_id.len(),
        "{} {}",
        by_id.len(),
        by_key.len()
    );
    for (id, headers) in &by_id {
        assert_eq!(headers.len(), 1, "two headers of message {id}");
    }
    for ids in by_key.values() {
        assert_eq!(ids.len(), 1, "one data key of {ids:?}");
    }
    // What keyslots hold is the data key of their message, and no other's.
    let mut slots_seen = 0;
    for name in slots(weed, &bucket)
        .iter()
        .filter(|name| name.ends_with(NEXT))
    {
        let slot = strongroom::message::Slot::parse(&weed.raw_get(&bucket, name).unwrap()).unwrap();
        let header = all
            .iter()
            .find(|h| h.message_id() == slot.message_id())
            .unwrap();
        let parts = slot.edk_of(NEXT).unwrap().raw_aes_parts().unwrap();
        assert_eq!(
            open(&NEW, parts.iv, parts.ciphertext, header),
            data_key(header)
        );
        slots_seen += 1;
    }
    assert!(slots_seen >= 5, "{slots_seen}");
}
