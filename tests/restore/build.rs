//! Archives made entry by entry, good ones and others.

use std::fmt::Write as _;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use strongroom::api::Receipt;
use strongroom::bundle;
use strongroom::manifest::{Latest, RelPath, RunId, manifest_key};

use crate::support::*;

/// When the files of tests were last changed: a day in 2026, and nanoseconds.
pub(crate) const MTIME: (i64, u32) = (1_790_000_000, 123_456_789);

/// An archive in the making: what is stored, and the lines of a manifest.
pub(crate) struct Build<'a> {
    pub(crate) agent: &'a Agent,
    pub(crate) bucket: String,
    pub(crate) prefix: String,
    pub(crate) entries: Vec<Value>,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// A run that began at a second of 2026-11-22.
pub(crate) fn run_at(time: &str) -> RunId {
    RunId::try_from(format!("20261122T{time}Z-0123abcd")).unwrap()
}

impl<'a> Build<'a> {
    pub(crate) fn new(agent: &'a Agent, bucket: &str, prefix: &str) -> Self {
        Self {
            agent,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            entries: Vec::new(),
        }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }

    /// Stores an object below the prefix.
    #[track_caller]
    pub(crate) fn put(&self, below: &str, bytes: &[u8], headers: &[(&str, &str)]) -> Receipt {
        let key = encode(&format!("{}{below}", self.prefix));
        let target = format!("/v1/objects/{}/{key}", self.bucket);
        let reply = self.agent.http("PUT", &target, headers, bytes);
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.parse()
    }

    /// An entry with what all entries have; `more` has the rest.
    pub(crate) fn entry(&mut self, path: &[u8], kind: &str, mode: u32, more: Value) -> &mut Value {
        let mut entry = json!({
            "type": kind, "mode": format!("{mode:04o}"), "uid": 0, "gid": 0,
            "mtime": [MTIME.0, MTIME.1], "ctime": [MTIME.0, MTIME.1], "dev": 1, "ino": 1,
        });
        match std::str::from_utf8(path) {
            Ok(text) => entry["path"] = text.into(),
            Err(_) => entry["path_b64"] = data_encoding::BASE64.encode(path).into(),
        }
        let entry_map = entry.as_object_mut().unwrap();
        entry_map.extend(more.as_object().unwrap().clone());
        self.entries.push(entry);
        self.entries.last_mut().unwrap()
    }

    pub(crate) fn dir(&mut self, path: &str, mode: u32) -> &mut Value {
        self.entry(path.as_bytes(), "dir", mode, json!({}))
    }

    /// A file that is an object of its own.
    #[track_caller]
    pub(crate) fn file(&mut self, path: &str, bytes: &[u8]) -> &mut Value {
        self.file_with(path.as_bytes(), path, bytes, &[])
    }

    /// The same at this key, with these headers.
    #[track_caller]
    pub(crate) fn file_with(
        &mut self,
        path: &[u8],
        key: &str,
        bytes: &[u8],
        headers: &[(&str, &str)],
    ) -> &mut Value {
        let receipt = self.put(key, bytes, headers);
        self.entry(path, "file", 0o644, of(key, bytes, &receipt))
    }

    /// Files in one bundle.
    #[track_caller]
    pub(crate) fn bundle(&mut self, key: &str, files: &[(&str, &[u8])]) {
        let mut builder = bundle::Builder::new();
        let mut offsets = Vec::new();
        for (path, bytes) in files {
            let path = RelPath::new(*path).unwrap();
            offsets.push(builder.add(&path, bytes, [0; 32]).unwrap());
        }
        let receipt = self.put(key, &builder.finish(), &[]);
        for ((path, bytes), offset) in files.iter().zip(offsets) {
            let mut more = of(key, bytes, &receipt);
            let mut at = more["object"].take();
            at["offset"] = offset.into();
            more.as_object_mut().unwrap().remove("object");
            more["bundle"] = at;
            self.entry(path.as_bytes(), "file", 0o640, more);
        }
    }

    /// The manifest of these entries, sorted.
    pub(crate) fn manifest(&mut self, run: &RunId) -> Vec<u8> {
        let name = |entry: &Value| -> Vec<Vec<u8>> {
            let bytes = match entry["path"].as_str() {
                Some(".") => return Vec::new(),
                Some(text) => text.as_bytes().to_vec(),
                None => data_encoding::BASE64
                    .decode(entry["path_b64"].as_str().unwrap().as_bytes())
                    .unwrap(),
            };
            bytes.split(|b| *b == b'/').map(<[u8]>::to_vec).collect()
        };
        self.entries.sort_by_key(name);
        let mut text = String::new();
        writeln!(text, "{}", self.head(run)).unwrap();
        for entry in &self.entries {
            writeln!(text, "{}", json!({ "entry": entry })).unwrap();
        }
        writeln!(text, "{}", end(&self.entries)).unwrap();
        zstd::bulk::compress(text.as_bytes(), 3).unwrap()
    }

    pub(crate) fn head(&self, run: &RunId) -> Value {
        json!({ "head": {
            "format": "strongroom-manifest", "version": 1, "run": run.as_str(),
            "started": "2026-11-22T11:30:00Z", "host": "h", "roots": [],
            "bucket": self.bucket, "prefix": self.prefix, "program": "a test",
        }})
    }

    /// Stores a manifest and makes it the newest.
    #[track_caller]
    pub(crate) fn store(&self, run: &RunId, manifest: &[u8]) {
        let receipt = self.put(&manifest_key(run), manifest, &[]);
        let now = jiff::Timestamp::now();
        let latest = Latest::new(run.clone(), now, receipt.message_id, receipt.version_id);
        self.put(".strongroom-archive/latest", &latest.encode(), &[]);
    }

    /// Ends the run.
    #[track_caller]
    pub(crate) fn finish(&mut self, run: &RunId) {
        let manifest = self.manifest(run);
        self.store(run, &manifest);
    }
}

/// What an entry says of a file in an object.
pub(crate) fn of(key: &str, bytes: &[u8], receipt: &Receipt) -> Value {
    let mut at = json!({ "key": key, "message_id": receipt.message_id });
    if let Some(version) = &receipt.version_id {
        at["version_id"] = version.as_str().into();
    }
    json!({ "size": bytes.len(), "sha256": sha256(bytes), "object": at })
}

/// An end line with the right counts.
pub(crate) fn end(entries: &[Value]) -> Value {
    let files: Vec<u64> = entries
        .iter()
        .filter(|entry| entry["type"] == "file")
        .map(|entry| entry["size"].as_u64().unwrap_or(0))
        .collect();
    let counts = json!({
        "entries": entries.len(), "files": files.len(),
        "bytes": files.iter().fold(0_u64, |sum, size| sum.saturating_add(*size)),
    });
    json!({ "end": { "complete": true, "counts": counts } })
}

fn encode(key: &str) -> String {
    percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC).to_string()
}
