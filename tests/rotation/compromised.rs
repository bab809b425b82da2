//! `use = "compromised"`: a key that somebody else may hold opens only what
//! this host's receipts vouch for.

use strongroom::api::Inspection;
use strongroom::message::{DataKey, Header, Opener, Parsed, Permit};
use strongroom::secret::Secret32;

use super::*;

const OLD: [u8; 32] = [0x5c; 32];

/// The data key, by somebody who has the wrapping key.
fn stolen(header: &Header) -> Secret32 {
    let parts = header.edks()[0].raw_aes_parts().unwrap();
    let aad = header.keyring_aad(&strongroom::message::Context::new());
    let key = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, &OLD).unwrap();
    let key = ring::aead::LessSafeKey::new(key);
    let nonce = ring::aead::Nonce::assume_unique_for_key(*parts.iv);
    let mut bytes = parts.ciphertext.to_vec();
    let plain = key
        .open_in_place(nonce, ring::aead::Aad::from(aad), &mut bytes)
        .unwrap();
    Secret32::from_slice(plain).unwrap()
}

/// Opens a message as anybody could who has the old key.
fn opener(raw: &[u8]) -> (Opener, usize) {
    let Ok(Parsed::Header(header)) = Header::parse(raw, Permit::default()) else {
        panic!("no header");
    };
    let key = DataKey::unwrapped(stolen(&header));
    let len = header.len();
    let none = strongroom::message::Context::new();
    (header.verify(key, &none).unwrap(), len)
}

/// A body of the forger's choice under the same header: frames that verify.
fn forged(raw: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let Ok(Parsed::Header(header)) = Header::parse(raw, Permit::default()) else {
        panic!("no header");
    };
    let secret = stolen(&header);
    let salt = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA512, header.message_id().as_bytes());
    let prk = salt.extract(secret.expose());
    let info = [&[0x04, 0x78][..], b"DERIVEKEY"];
    let okm = prk.expand(&info, &ring::aead::AES_256_GCM).unwrap();
    let key = ring::aead::LessSafeKey::new(ring::aead::UnboundKey::from(okm));
    let mut iv = [0; 12];
    iv[11] = 1;
    let mut aad = header.message_id().as_bytes().to_vec();
    aad.extend(b"AWSKMSEncryptionClient Final Frame");
    aad.extend(1_u32.to_be_bytes());
    aad.extend((plaintext.len() as u64).to_be_bytes());
    let mut body = plaintext.to_vec();
    let nonce = ring::aead::Nonce::assume_unique_for_key(iv);
    key.seal_in_place_append_tag(nonce, ring::aead::Aad::from(aad), &mut body)
        .unwrap();
    let mut out = header.bytes().to_vec();
    out.extend([0xff; 4]);
    out.extend(1_u32.to_be_bytes());
    out.extend(iv);
    out.extend(u32::try_from(plaintext.len()).unwrap().to_be_bytes());
    out.extend(body);
    out
}

fn metadata(weed: &Weed, bucket: &str, key: &str) -> Vec<(String, String)> {
    let head = weed.raw_head(bucket, key);
    head.metadata().unwrap().clone().into_iter().collect()
}

fn compromise(agent: &Agent) {
    agent.reconfigure(|config| {
        set_use(config, KEY, "compromised");
        set_use(config, NEXT, "active");
    });
    reload(agent);
}

#[test]
fn rule_10_a_forged_body_under_an_unchanged_header_is_refused() {
    for checksum in ["crc64nvme", "sha256"] {
        let (hsm, weed) = (two_tokens(Some(&OLD)), Weed::shared());
        let bucket = weed.bucket("compromised");
        let agent = Agent::start(&hsm, weed, |config| {
            config["s3"]["checksum"] = value(checksum);
            config["s3"]["part_size"] = value("5 MiB");
        });
        put(&agent, &bucket, "small", &[], b"pay 100 to Alice");
        put(&agent, &bucket, "empty", &[], b"");
        let large = pattern(3, 12 << 20);
        put(&agent, &bucket, "large", &[], &large);
        put(&agent, &bucket, "forged", &[], b"pay 100 to Alice");
        let raw = weed.raw_get(&bucket, "forged").unwrap();
        let told = metadata(weed, &bucket, "forged");
        let forgery = forged(&raw, b"pay 999 to Mario");
        assert_eq!(forgery.len(), raw.len());
        let (opened, at) = opener(&forgery);
        let layout = opened.layout(forgery.len() as u64).unwrap();
        let mut frame = forgery[at..].to_vec();
        let plain = opened.open_frame(&layout, 1, &mut frame).unwrap();
        assert_eq!(
            &frame[plain], b"pay 999 to Mario",
            "the forgery is no good one"
        );

        weed.raw_put_with(&bucket, "forged", &forgery, &told);
        // As long as nobody knows of the theft it passes for the real one.
        assert_eq!(get(&agent, &bucket, "forged").body, b"pay 999 to Mario");
        compromise(&agent);
        let reply = get(&agent, &bucket, "forged");
        reply.fails("altered", &["compromised", "receipt"]);
        let ranged = agent.http(
            "GET",
            &format!("/v1/objects/{bucket}/forged"),
            &[("Range", "bytes=0-3")],
            b"",
        );
        assert_ne!(ranged.status / 100, 2, "{}", ranged.text());
        let place = |key: &str| format!("s3://{bucket}/{key}");
        agent
            .cli(["cp", &place("forged"), &place("copy")])
            .fails(65, &["altered"]);

        // What is as it was is read, whole, and copied into a new message.
        assert_eq!(get(&agent, &bucket, "small").body, b"pay 100 to Alice");
        assert_eq!(get(&agent, &bucket, "empty").body, b"");
        assert_eq!(get(&agent, &bucket, "large").body, large);
        let range = agent.http(
            "GET",
            &format!("/v1/objects/{bucket}/large"),
            &[("Range", "bytes=0-3")],
            b"",
        );
        range.fails("range", &["compromised", "whole"]);
        let found: Inspection = agent
            .http(
                "GET",
                &format!("/v1/objects/{bucket}/small?inspect"),
                &[],
                b"",
            )
            .parse();
        assert!(
            format!("{:?}", found.questions).contains("compromised"),
            "{found:?}"
        );
        agent.cli(["cp", &place("small"), &place("small")]).ok();
        let copy: Inspection = agent
            .http(
                "GET",
                &format!("/v1/objects/{bucket}/small?inspect"),
                &[],
                b"",
            )
            .parse();
        assert_eq!(copy.encrypted_data_keys[0].name, NEXT);
        assert_eq!(get(&agent, &bucket, "small").body, b"pay 100 to Alice");
    }
}

#[test]
fn rule_10_a_compromised_key_is_never_tried_without_a_receipt() {
    let (hsm, weed) = (two_tokens(Some(&OLD)), Weed::shared());
    let bucket = weed.bucket("compromised-foreign");
    let agent = Agent::start(&hsm, weed, |_| {});
    put(&agent, &bucket, "known", &[], b"known");
    // Another host, whose catalogue is not ours.
    let elsewhere = Agent::start(&hsm, weed, |_| {});
    put(&elsewhere, &bucket, "unknown", &[], b"unknown");
    assert_eq!(get(&agent, &bucket, "unknown").body, b"unknown");
    compromise(&agent);
    get(&agent, &bucket, "unknown").fails("no-key", &["compromised", "receipt"]);
    assert_eq!(get(&agent, &bucket, "known").body, b"known");
    // Nor is it rewrapped: a keyslot would launder whatever is there.
    let (lines, code) = rewrap(&agent, &format!("s3://{bucket}/"), &[]);
    let counts = counts(&lines);
    assert_eq!(
        (counts.failed, counts.rewrapped, code),
        (2, 0, Some(1)),
        "{lines:?}"
    );
    assert!(slots(weed, &bucket).is_empty());
}
