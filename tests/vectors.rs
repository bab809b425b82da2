//! The official decrypt vectors of the AWS Encryption SDK project: what other
//! implementations wrote opens, and what must not open does not.
//!
//! `STRONGROOM_VECTORS` names the directory that holds `esdk/`; without it the
//! tests say that they were skipped.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use data_encoding::BASE64;
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::{Oaep, RsaPrivateKey};
use serde_json::Value;
use strongroom::message::{Context, DataKey, Edk, Error, Header, Opener, Parsed, Permit};
use zeroize::Zeroizing;

const ALL: Permit = Permit { uncommitted: true };

fn esdk() -> Option<PathBuf> {
    let folder = std::env::var_os("STRONGROOM_VECTORS").map(|dir| Path::new(&dir).join("esdk"));
    if folder.is_none() {
        println!("skipped: STRONGROOM_VECTORS is not set");
    }
    folder
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

fn header(message: &[u8]) -> Result<Box<Header>, Error> {
    match Header::parse(message, ALL)? {
        Parsed::Header(header) => Ok(header),
        Parsed::NeedMore => panic!("the vector ends in its header"),
    }
}

/// Opens the body the way that the message's kind demands.
fn open(opener: &Opener, message: &[u8]) -> Result<Vec<u8>, Error> {
    let header = opener.header();
    let body = &message[header.len()..];
    if !header.is_framed() {
        let mut body = body.to_vec();
        let place = opener.open_single(&mut body)?;
        return Ok(body[place].to_vec());
    }
    let layout = if header.is_signed() {
        assert!(opener.layout(message.len() as u64).is_err());
        let mut walker = opener.walk()?;
        for piece in body.chunks(1000) {
            walker.push(piece)?;
        }
        walker.finish()?.layout()
    } else {
        opener.layout(message.len() as u64)?
    };
    let mut plaintext = Vec::new();
    for seq in 1..=layout.frames() {
        let span = layout.frame_span(seq);
        let span = usize::try_from(span.start).unwrap()..usize::try_from(span.end).unwrap();
        let mut frame = message[span].to_vec();
        let place = opener.open_frame(&layout, seq, &mut frame)?;
        plaintext.extend_from_slice(&frame[place]);
    }
    Ok(plaintext)
}

struct Keys {
    aes: Vec<u8>,
    rsa: RsaPrivateKey,
}

impl Keys {
    fn load(folder: &Path) -> Self {
        let keys = json(&folder.join("keys.json"));
        let material = |name: &str| text(&keys["keys"][name], "material").to_owned();
        Self {
            aes: BASE64.decode(material("aes-256").as_bytes()).unwrap(),
            rsa: RsaPrivateKey::from_pkcs8_pem(&material("rsa-4096-private")).unwrap(),
        }
    }

    /// The data key in `edk`, if the manifest's `key` opens it.
    fn unwrap(&self, key: &Value, edk: &Edk, aad: &[u8]) -> Option<DataKey> {
        let namespace = text(key, "provider-id");
        let name = text(key, "key");
        let bytes = if text(key, "encryption-algorithm") == "aes" {
            let parts = edk.raw_aes_parts_in(namespace)?;
            assert_eq!(parts.key_name, name);
            let wrapped = Payload {
                msg: parts.ciphertext,
                aad,
            };
            Aes256Gcm::new(&Key::<Aes256Gcm>::try_from(&self.aes[..]).unwrap())
                .decrypt(&Nonce::from(*parts.iv), wrapped)
                .ok()?
        } else {
            let parts = edk.raw_rsa_parts_in(namespace)?;
            let padding = match text(key, "padding-hash") {
                "sha1" => Oaep::new::<sha1::Sha1>(),
                "sha256" => Oaep::new::<sha2::Sha256>(),
                "sha384" => Oaep::new::<sha2::Sha384>(),
                "sha512" => Oaep::new::<sha2::Sha512>(),
                other => panic!("padding hash {other}"),
            };
            self.rsa.decrypt(padding, parts.ciphertext).ok()?
        };
        DataKey::unwrapped_of_any_length(Zeroizing::new(bytes))
    }
}

/// Manifest context pairs that the message does not store.
fn not_stored(manifest: &Value, header: &Header) -> Context {
    let mut required = Context::new();
    for (key, value) in manifest.as_object().unwrap() {
        if header.context().get(key).is_none() {
            required.insert(key, value.as_str().unwrap()).unwrap();
        }
    }
    required
}

#[test]
fn official_raw_key_vectors() {
    let Some(folder) = esdk().map(|esdk| esdk.join("v4-Net-4.0.1")) else {
        return;
    };
    let keys = Keys::load(&folder);
    let manifest = json(&folder.join("manifest.json"));
    let file = |uri: &str| std::fs::read(folder.join(uri.trim_start_matches("file://"))).unwrap();
    let (mut aes, mut rsa, mut required_pairs, mut uncommitted) = (0, 0, 0, 0);
    for (name, test) in manifest["tests"].as_object().unwrap() {
        let masters = test["master-keys"].as_array().unwrap();
        if masters.iter().any(|key| key["type"] != "raw") {
            continue;
        }
        let message = file(text(test, "ciphertext"));
        let header = header(&message).unwrap();
        let required = not_stored(&test["encryption-context"], &header);
        if !header.is_committed() {
            let strict = Header::parse(&message, Permit::default());
            assert!(matches!(strict, Err(Error::Uncommitted)), "{name}");
            uncommitted += 1;
        }
        let aad = header.keyring_aad(&required);
        let unwrap = || {
            masters
                .iter()
                .flat_map(|key| header.edks().iter().map(move |edk| (key, edk)))
                .find_map(|(key, edk)| keys.unwrap(key, edk, &aad))
                .unwrap_or_else(|| panic!("{name}: no key opens an EDK"))
        };
        let opener = header.verify(unwrap(), &required).unwrap();
        let plaintext = open(&opener, &message).unwrap();
        assert_eq!(
            plaintext,
            file(text(&test["result"]["output"], "plaintext")),
            "{name}"
        );
        if !required.is_empty() {
            let without = header.verify(unwrap(), &Context::new());
            assert!(matches!(without, Err(Error::Altered(_))), "{name}");
            required_pairs += 1;
        }
        match text(&masters[0], "encryption-algorithm") {
            "aes" => aes += 1,
            _ => rsa += 1,
        }
    }
    println!("raw-key vectors: {aes} AES, {rsa} RSA; {required_pairs} with pairs not stored");
    assert_eq!((aes, rsa), (33, 66));
    assert_eq!((required_pairs, uncommitted), (33, 81));
}

#[test]
fn official_commitment_vectors() {
    let Some(file) = esdk().map(|esdk| esdk.join("commitment-test-vectors.json")) else {
        return;
    };
    let vectors = json(&file);
    let base64 = |text: &str| BASE64.decode(text.as_bytes()).unwrap();
    let (mut opened, mut refused) = (0, 0);
    for test in vectors["tests"].as_array().unwrap() {
        let comment = text(test, "comment");
        let message = base64(text(test, "ciphertext"));
        let data_key = Zeroizing::new(base64(text(test, "decrypted-dek")));
        let data_key = DataKey::unwrapped_of_any_length(data_key).unwrap();
        let header = header(&message).unwrap();
        let verified = header.verify(data_key, &Context::new());
        if test["status"] == true {
            let plaintext = open(&verified.unwrap(), &message).unwrap();
            let frames = test["plaintext-frames"].as_array().unwrap();
            let expected: String = frames.iter().filter_map(Value::as_str).collect();
            assert_eq!(String::from_utf8_lossy(&plaintext), expected, "{comment}");
            opened += 1;
        } else {
            assert!(matches!(verified, Err(Error::WrongKey)), "{comment}");
            refused += 1;
        }
    }
    println!("commitment vectors: {opened} opened, {refused} refused");
    assert_eq!((opened, refused), (41, 5));
}
