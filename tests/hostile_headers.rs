//! Headers that no writer of ours would write, by a writer who has the
//! wrapping key or none: each is either read for what it is or refused, and
//! none costs the agent more than its limits allow.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Instant;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use support::tamper::{read, refused};
use support::{Agent, Hsm, Weed, value};

/// The wrapping key of these tests, known to both sides.
const WRAPPING_KEY: [u8; 32] = [0x57; 32];
/// The data key of every forged message.
const DATA_KEY: [u8; 32] = [0x44; 32];

/// A message written by hand, from the published format alone.
struct Forgery {
    context: Vec<u8>,
    edks: Vec<Vec<u8>>,
    edk_count: u16,
    content_type: u8,
    frame_length: u32,
    plain: Vec<u8>,
}

impl Forgery {
    /// What would be a sound message for this place.
    fn sound(bucket: &str, key: &str) -> Self {
        let context = pairs(&[
            ("strongroom:bucket", bucket),
            ("strongroom:created", "1700000000000"),
            ("strongroom:key", key),
        ]);
        let edks = vec![ours(&DATA_KEY, &context, 1)];
        Self {
            context,
            edks,
            edk_count: 1,
            content_type: 2,
            frame_length: 4096,
            plain: b"forged".to_vec(),
        }
    }

    fn with_edks(mut self, edks: Vec<Vec<u8>>) -> Self {
        self.edk_count = u16::try_from(edks.len()).unwrap();
        self.edks = edks;
        self
    }

    /// Header, its tag, and one final frame.
    fn bytes(&self) -> Vec<u8> {
        let id = [0x1d; 32];
        let (body_key, commitment) = derive(&id);
        let mut out = vec![2, 0x04, 0x78];
        out.extend_from_slice(&id);
        out.extend_from_slice(&short(self.context.len()));
        out.extend_from_slice(&self.context);
        out.extend_from_slice(&self.edk_count.to_be_bytes());
        out.extend(self.edks.iter().flatten());
        out.push(self.content_type);
        out.extend_from_slice(&self.frame_length.to_be_bytes());
        out.extend_from_slice(&commitment);
        let tag = seal(&body_key, [0; 12], &out, b"");
        out.extend_from_slice(&tag);
        let mut iv = [0; 12];
        iv[11] = 1;
        let mut aad = id.to_vec();
        aad.extend_from_slice(b"AWSKMSEncryptionClient Final Frame");
        aad.extend_from_slice(&1_u32.to_be_bytes());
        aad.extend_from_slice(&(self.plain.len() as u64).to_be_bytes());
        out.extend_from_slice(&[0xff; 4]);
        out.extend_from_slice(&1_u32.to_be_bytes());
        out.extend_from_slice(&iv);
        out.extend_from_slice(&u32::try_from(self.plain.len()).unwrap().to_be_bytes());
        out.extend_from_slice(&seal(&body_key, iv, &aad, &self.plain));
        out
    }

    fn header_len(&self) -> usize {
        self.bytes().len() - 24 - self.plain.len() - 16
    }
}

fn short(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap().to_be_bytes()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut out = short(pairs.len()).to_vec();
    for field in pairs.iter().flat_map(|(name, value)| [name, value]) {
        out.extend_from_slice(&short(field.len()));
        out.extend_from_slice(field.as_bytes());
    }
    out
}

fn edk(provider: &str, info: &[u8], ciphertext: &[u8]) -> Vec<u8> {
    let fields = [provider.as_bytes(), info, ciphertext];
    fields
        .iter()
        .flat_map(|f| [&short(f.len())[..], f].concat())
        .collect()
}

fn info(name: &str, iv: [u8; 12]) -> Vec<u8> {
    [
        name.as_bytes(),
        &128_u32.to_be_bytes(),
        &12_u32.to_be_bytes(),
        &iv,
    ]
    .concat()
}

/// An EDK that the agent's key opens.
fn ours(data_key: &[u8; 32], context: &[u8], n: u8) -> Vec<u8> {
    let iv = [n; 12];
    edk(
        "strongroom",
        &info(support::hsm::KEY, iv),
        &seal(&WRAPPING_KEY, iv, context, data_key),
    )
}

/// One that claims to be for the agent's key and is garbage.
fn garbage(n: u8) -> Vec<u8> {
    edk("strongroom", &info(support::hsm::KEY, [n; 12]), &[n; 48])
}

/// One of somebody else's.
fn foreign(len: usize) -> Vec<u8> {
    edk("aws-kms", b"arn:aws:kms:somewhere", &vec![7; len])
}

fn seal(key: &[u8; 32], iv: [u8; 12], aad: &[u8], text: &[u8]) -> Vec<u8> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let nonce = Nonce::assume_unique_for_key(iv);
    let mut text = text.to_vec();
    key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut text)
        .unwrap();
    text
}

fn derive(id: &[u8; 32]) -> ([u8; 32], [u8; 32]) {
    use ring::hkdf::{HKDF_SHA512, Salt};
    struct Len;
    impl ring::hkdf::KeyType for Len {
        fn len(&self) -> usize {
            32
        }
    }
    let prk = Salt::new(HKDF_SHA512, id).extract(&DATA_KEY);
    let expand = |info: &[&[u8]]| {
        let mut out = [0; 32];
        prk.expand(info, Len).unwrap().fill(&mut out).unwrap();
        out
    };
    (expand(&[b"\x04\x78DERIVEKEY"]), expand(&[b"COMMITKEY"]))
}

struct Bench {
    agent: Agent,
    weed: &'static Weed,
    bucket: String,
    _hsm: Hsm,
}

impl Bench {
    fn new() -> Self {
        let (hsm, weed) = (Hsm::with_key(&WRAPPING_KEY), Weed::shared());
        let agent = Agent::start(&hsm, weed, |config| {
            config["agent"]["memory_budget"] = value("48 MiB");
        });
        Self {
            agent,
            weed,
            bucket: weed.bucket("forged"),
            _hsm: hsm,
        }
    }

    fn sound(&self) -> Forgery {
        Forgery::sound(&self.bucket, "k")
    }

    #[track_caller]
    fn opens(&self, what: &str, forgery: &Forgery) {
        self.weed.raw_put(&self.bucket, "k", &forgery.bytes());
        let reply = read(&self.agent, &self.bucket, "k");
        assert_eq!(reply.status, 200, "{what}: {}", reply.text());
        assert!(reply.complete && reply.body == forgery.plain, "{what}");
    }

    #[track_caller]
    fn refuses(&self, what: &str, bytes: &[u8], slugs: &[&str]) {
        self.weed.raw_put(&self.bucket, "k", bytes);
        let reply = read(&self.agent, &self.bucket, "k");
        let slug = refused(&self.agent, what, &reply, &[]);
        assert!(slugs.contains(&slug.as_str()), "{what}: refused as {slug}");
    }
}

/// Serialised length of a [`foreign`] EDK without its ciphertext.
const FOREIGN_EXTRA: usize = 6 + 7 + 21;

/// A sound message whose header has exactly `len` bytes, by padding with
/// other people's EDKs of at most 8 KiB.
fn header_of(bench: &Bench, len: usize) -> Forgery {
    let base = bench.sound();
    let mut left = len - base.header_len();
    let mut edks = Vec::new();
    while left > 0 {
        // The last one must not become shorter than its own frame.
        let piece = if left > 8192 {
            8192.min(left - 4096)
        } else {
            left
        };
        edks.push(foreign(piece - FOREIGN_EXTRA));
        left -= piece;
    }
    edks.extend(base.edks.clone());
    let forgery = base.with_edks(edks);
    assert_eq!(forgery.header_len(), len);
    forgery
}

#[test]
fn rule_04_sizes_and_counts_in_a_header_are_limited() {
    let bench = Bench::new();
    bench.opens("a forgery that is sound", &bench.sound());
    bench.opens("a header of 64 KiB", &header_of(&bench, 65_536));
    let longer = header_of(&bench, 65_537);
    bench.refuses(
        "a header of 64 KiB and a byte",
        &longer.bytes(),
        &["unsupported"],
    );
    let far = header_of(&bench, 100_000);
    bench.refuses("a header of 100,000 bytes", &far.bytes(), &["unsupported"]);

    let context = bench.sound().context;
    let real = ours(&DATA_KEY, &context, 1);
    let many = |n: usize| {
        let mut edks = vec![real.clone()];
        edks.resize_with(n, || foreign(40));
        bench.sound().with_edks(edks)
    };
    bench.opens("16 EDKs", &many(16));
    bench.refuses("17 EDKs", &many(17).bytes(), &["unsupported"]);
    bench.refuses(
        "65,535 EDKs announced",
        &{
            let mut forgery = bench.sound();
            forgery.edk_count = u16::MAX;
            forgery.bytes()
        },
        &["unsupported"],
    );
    bench.refuses(
        "no EDK",
        &bench.sound().with_edks(Vec::new()).bytes(),
        &["altered"],
    );
    let long = bench.sound().with_edks(vec![foreign(8193), real.clone()]);
    bench.refuses("an EDK beyond 8 KiB", &long.bytes(), &["unsupported"]);

    for length in [0, 1, (16 << 20) + 1, 1 << 31, u32::MAX] {
        let mut forgery = bench.sound();
        forgery.frame_length = length;
        let what = format!("frames of {length} bytes");
        // One byte a frame is no contradiction by itself: then it is the body,
        // longer than its frame, that is wrong.
        bench.refuses(
            &what,
            &forgery.bytes(),
            &["altered", "unsupported", "truncated"],
        );
    }
    let mut largest = bench.sound();
    largest.frame_length = 16 << 20;
    bench.opens("frames of 16 MiB, in a short message", &largest);
    for content_type in [0, 1, 3, 255] {
        let mut forgery = bench.sound();
        forgery.content_type = content_type;
        bench.refuses(
            &format!("content type {content_type}"),
            &forgery.bytes(),
            &["altered"],
        );
    }
    let status: strongroom::api::Status = bench.agent.http("GET", "/v1/status", &[], b"").parse();
    assert_eq!(status.memory_in_use, 0);
    println!("4 headers within their limits read, 15 beyond them refused");
}

#[test]
fn rule_04_at_most_eight_unwraps_and_the_next_after_a_wrong_key() {
    let bench = Bench::new();
    let context = bench.sound().context;
    let real = ours(&DATA_KEY, &context, 1);
    // Opens, to a key that the header does not commit to.
    let wrong = ours(&[0x99; 32], &context, 2);
    let at = |position: usize, total: usize, filler: &dyn Fn(usize) -> Vec<u8>| {
        let edks = (0..total).map(|n| {
            if n == position {
                real.clone()
            } else {
                filler(n)
            }
        });
        bench.sound().with_edks(edks.collect())
    };
    let junk = |n: usize| garbage(u8::try_from(n).unwrap());
    let others = |_| foreign(40);
    bench.opens("ours behind 15 of others", &at(15, 16, &others));
    bench.opens("ours behind 7 of garbage", &at(7, 16, &junk));
    bench.opens(
        "ours behind a wrong data key",
        &at(1, 2, &|_| wrong.clone()),
    );
    bench.refuses(
        "ours behind 8 of garbage",
        &at(8, 16, &junk).bytes(),
        &["no-key"],
    );
    bench.refuses("16 of garbage", &at(16, 16, &junk).bytes(), &["no-key"]);
    bench.refuses("others only", &at(16, 16, &others).bytes(), &["no-key"]);
    let moved = ours(&DATA_KEY, &pairs(&[("strongroom:bucket", "b")]), 3);
    bench.refuses(
        "an EDK of another context",
        &bench.sound().with_edks(vec![moved]).bytes(),
        &["no-key"],
    );
    // Garbage costs time, but the token stays well and others are served.
    let began = Instant::now();
    for _ in 0..10 {
        bench.refuses("garbage", &at(16, 16, &junk).bytes(), &["no-key"]);
    }
    let spent = began.elapsed();
    let status: strongroom::api::Status = bench.agent.http("GET", "/v1/status", &[], b"").parse();
    assert_eq!(status.health, "ready", "{status:?}");
    bench.opens("a sound one", &bench.sound());
    println!(
        "80 bad unwraps in {spent:?}; the token is still {}",
        status.health
    );
    assert!(spent.as_secs() < 20, "{spent:?}");
}

#[test]
fn rule_05_contexts_that_lie_are_refused() {
    let bench = Bench::new();
    let sound = bench.sound().context;
    let place = [
        ("strongroom:bucket", bench.bucket.as_str()),
        ("strongroom:key", "k"),
    ];
    let [bucket, key] = place;
    let count = |n: u16| [&n.to_be_bytes(), &sound[2..]].concat();
    let twice = ("strongroom:key", "other");
    let cases = [
        ("a count of 65,535", count(u16::MAX), "altered"),
        ("a count of 4", count(4), "altered"),
        ("a count of 2", count(2), "altered"),
        ("a count of 0", count(0), "altered"),
        ("nothing but a count of 0", vec![0, 0], "altered"),
        ("a pair twice", pairs(&[bucket, key, twice]), "altered"),
        (
            "a name that is no text",
            [&sound[..4], b"\xff", &sound[5..]].concat(),
            "altered",
        ),
        ("no pair at all", Vec::new(), "unbound"),
        ("pairs of others only", pairs(&[("a", "b")]), "unbound"),
        ("a bucket and no key", pairs(&[bucket]), "elsewhere"),
        ("no bucket", pairs(&[key]), "elsewhere"),
        (
            "another key",
            pairs(&[bucket, ("strongroom:key", "k2")]),
            "elsewhere",
        ),
        ("no time", pairs(&[bucket, key]), "altered"),
        (
            "a time that is no number",
            pairs(&[bucket, ("strongroom:created", "now"), key]),
            "altered",
        ),
    ];
    for (what, context, slug) in &cases {
        let edks = vec![ours(&DATA_KEY, context, 1)];
        let mut forgery = bench.sound().with_edks(edks);
        forgery.context.clone_from(context);
        bench.refuses(what, &forgery.bytes(), &[slug]);
        if *slug != "unbound" {
            // Permission for unbound messages is no permission for these.
            let target = format!("/v1/objects/{}/k", bench.bucket);
            let allow = [("Strongroom-Allow-Unbound", "true")];
            let reply = bench.agent.http("GET", &target, &allow, b"");
            refused(&bench.agent, what, &reply, &[]);
        }
    }
    println!("{} contexts refused", cases.len());
}
