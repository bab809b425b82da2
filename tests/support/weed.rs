//! SeaweedFS on free ports, and a raw view of what is stored in it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};

use super::process::signal;

/// The region every test uses.
pub const REGION: &str = "us-east-1";

/// What an agent must know of an S3 server.
#[derive(Clone, Debug)]
pub struct Store {
    /// The endpoint's URL.
    pub url: String,
    /// AWS_ACCESS_KEY_ID.
    pub access_key: String,
    /// AWS_SECRET_ACCESS_KEY.
    pub secret_key: String,
}

impl Store {
    /// A server that takes any credentials, or none that is there at all.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            access_key: "test-access-key".into(),
            secret_key: "test-secret-key".into(),
        }
    }

    /// The same server with other credentials.
    #[must_use]
    pub fn with_credentials(&self, access_key: &str, secret_key: &str) -> Self {
        Self {
            url: self.url.clone(),
            access_key: access_key.into(),
            secret_key: secret_key.into(),
        }
    }
}

impl From<&Weed> for Store {
    fn from(weed: &Weed) -> Self {
        weed.store.clone()
    }
}

impl From<&Store> for Store {
    fn from(store: &Store) -> Self {
        store.clone()
    }
}

/// One version of an object, or the mark of its deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The object key.
    pub key: String,
    /// S3's version id.
    pub id: String,
    /// Whether it is the current one.
    pub latest: bool,
    /// Whether it is a delete marker.
    pub delete_marker: bool,
}

/// A running SeaweedFS. It ends with this value, or with the test process.
pub struct Weed {
    /// How to reach it.
    pub store: Store,
    /// The client behind the raw view, for anything the methods lack.
    pub client: Client,
    pid: u32,
    child: Child,
    leash: Option<ChildStdin>,
}

impl Weed {
    /// Starts one (about 1 s).
    #[track_caller]
    pub fn start() -> Self {
        let store = Store::at("").with_credentials(&random_hex(10), &random_hex(20));
        // Kept: the script removes it, also when this process is killed.
        let dir = super::temp_dir().keep();
        let mut child = Command::new(super::root().join("tests/setup/weed"))
            .arg("--rm")
            .arg(&dir)
            .env("STRONGROOM_CACHE", super::cache())
            .env("AWS_ACCESS_KEY_ID", &store.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &store.secret_key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let Some((url, pid)) = line.trim().split_once(' ') else {
            let mut words = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut words);
            panic!("SeaweedFS does not run (`make test` installs it): {words}");
        };
        let store = Store {
            url: url.to_owned(),
            ..store
        };
        Self {
            client: client(&store),
            store,
            pid: pid.parse().unwrap(),
            leash: child.stdin.take(),
            child,
        }
    }

    /// The one that all tests of this test binary share; each uses a bucket of
    /// its own.
    #[track_caller]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Weed> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Makes a bucket with a fresh name that begins with `name`.
    #[track_caller]
    pub fn bucket(&self, name: &str) -> String {
        self.make_bucket(name, false, false)
    }

    /// Makes a bucket with versioning.
    #[track_caller]
    pub fn versioned_bucket(&self, name: &str) -> String {
        self.make_bucket(name, true, false)
    }

    /// Makes a bucket with Object Lock (and so with versioning).
    #[track_caller]
    pub fn locked_bucket(&self, name: &str) -> String {
        self.make_bucket(name, false, true)
    }

    #[track_caller]
    fn make_bucket(&self, name: &str, versioning: bool, lock: bool) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let make = self.client.create_bucket().bucket(&name);
        let make = if lock {
            make.object_lock_enabled_for_bucket(true)
        } else {
            make
        };
        self.wait(make.send()).unwrap();
        if versioning {
            let on = VersioningConfiguration::builder()
                .status(BucketVersioningStatus::Enabled)
                .build();
            let set = self.client.put_bucket_versioning().bucket(&name);
            self.wait(set.versioning_configuration(on).send()).unwrap();
        }
        name
    }

    /// The stored bytes; `None` if there is no such object.
    #[track_caller]
    pub fn raw_get(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        self.raw_get_version(bucket, key, None)
    }

    /// The stored bytes of one version.
    #[track_caller]
    pub fn raw_get_version(
        &self,
        bucket: &str,
        key: &str,
        version: Option<&str>,
    ) -> Option<Vec<u8>> {
        let get = self.client.get_object().bucket(bucket).key(key);
        let get = get.set_version_id(version.map(str::to_owned));
        self.wait(async {
            match get.send().await {
                Ok(object) => Some(object.body.collect().await.unwrap().to_vec()),
                Err(error) if error.as_service_error().is_some_and(|e| e.is_no_such_key()) => None,
                Err(error) => panic!("{error:?}"),
            }
        })
    }

    /// Streams the stored bytes into a file.
    #[track_caller]
    pub fn raw_get_file(&self, bucket: &str, key: &str, path: &Path) {
        let get = self.client.get_object().bucket(bucket).key(key);
        let path = path.to_owned();
        self.wait(async move {
            let mut body = get.send().await.unwrap().body.into_async_read();
            let mut file = tokio::fs::File::create(path).await.unwrap();
            tokio::io::copy(&mut body, &mut file).await.unwrap();
            file.sync_all().await.unwrap();
        });
    }

    /// Stores these bytes as they are.
    #[track_caller]
    pub fn raw_put(&self, bucket: &str, key: &str, bytes: &[u8]) {
        let put = self.client.put_object().bucket(bucket).key(key);
        self.wait(put.body(ByteStream::from(bytes.to_vec())).send())
            .unwrap();
    }

    /// Stores these bytes with this user metadata.
    #[track_caller]
    pub fn raw_put_with(
        &self,
        bucket: &str,
        key: &str,
        bytes: &[u8],
        metadata: &[(String, String)],
    ) {
        let mut put = self.client.put_object().bucket(bucket).key(key);
        for (name, value) in metadata {
            put = put.metadata(name, value);
        }
        self.wait(put.body(ByteStream::from(bytes.to_vec())).send())
            .unwrap();
    }

    /// Deletes an object.
    #[track_caller]
    pub fn raw_delete(&self, bucket: &str, key: &str) {
        self.wait(self.client.delete_object().bucket(bucket).key(key).send())
            .unwrap();
    }

    /// Deletes one version, without a trace.
    #[track_caller]
    pub fn raw_delete_version(&self, bucket: &str, key: &str, version: &str) {
        let delete = self.client.delete_object().bucket(bucket).key(key);
        self.wait(delete.version_id(version).send()).unwrap();
    }

    /// Content type, storage class and user metadata, as HEAD tells them.
    #[track_caller]
    pub fn raw_head(
        &self,
        bucket: &str,
        key: &str,
    ) -> aws_sdk_s3::operation::head_object::HeadObjectOutput {
        self.wait(self.client.head_object().bucket(bucket).key(key).send())
            .unwrap()
    }

    /// All keys under a prefix, in order.
    #[track_caller]
    pub fn list(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let pages = self.client.list_objects_v2().bucket(bucket).prefix(prefix);
        let mut pages = pages.into_paginator().send();
        self.wait(async move {
            let mut keys = Vec::new();
            while let Some(page) = pages.next().await {
                let objects = page.unwrap().contents.unwrap_or_default();
                keys.extend(objects.into_iter().filter_map(|o| o.key));
            }
            keys
        })
    }

    /// All versions and delete markers under a prefix.
    #[track_caller]
    pub fn list_versions(&self, bucket: &str, prefix: &str) -> Vec<Version> {
        let list = self.client.list_object_versions();
        let list = list.bucket(bucket).prefix(prefix).max_keys(1000);
        let page = self.wait(list.send()).unwrap();
        assert_ne!(page.is_truncated(), Some(true), "more than a page");
        let versions = page.versions().iter().map(|v| Version {
            key: v.key().unwrap_or_default().to_owned(),
            id: v.version_id().unwrap_or_default().to_owned(),
            latest: v.is_latest().unwrap_or_default(),
            delete_marker: false,
        });
        let markers = page.delete_markers().iter().map(|v| Version {
            key: v.key().unwrap_or_default().to_owned(),
            id: v.version_id().unwrap_or_default().to_owned(),
            latest: v.is_latest().unwrap_or_default(),
            delete_marker: true,
        });
        versions.chain(markers).collect()
    }

    /// Multipart uploads in progress: (key, upload id).
    #[track_caller]
    pub fn list_uploads(&self, bucket: &str) -> Vec<(String, String)> {
        let list = self.client.list_multipart_uploads().bucket(bucket);
        let page = self.wait(list.send()).unwrap();
        page.uploads()
            .iter()
            .map(|u| {
                (
                    u.key().unwrap_or_default().to_owned(),
                    u.upload_id().unwrap_or_default().to_owned(),
                )
            })
            .collect()
    }

    /// Stops the server's clock: requests hang until [`Self::resume`].
    pub fn pause(&self) {
        signal(self.pid, rustix::process::Signal::STOP);
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        signal(self.pid, rustix::process::Signal::CONT);
    }

    /// Runs a future of the SDK to its end. Works inside a runtime too.
    #[track_caller]
    pub fn wait<F: Future + Send>(&self, future: F) -> F::Output
    where
        F::Output: Send,
    {
        // Never dropped: a thread that runs a `#[tokio::test]` may neither
        // block on a runtime nor drop one.
        static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
        let runtime = RUNTIME.get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap()
        });
        std::thread::scope(|scope| scope.spawn(|| runtime.block_on(future)).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        self.resume();
        drop(self.leash.take());
        let _ = self.child.wait();
    }
}

fn client(store: &Store) -> Client {
    let http = aws_smithy_http_client::Builder::new().build_http();
    let credentials = Credentials::new(&store.access_key, &store.secret_key, None, None, "test");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http)
        .endpoint_url(&store.url)
        .region(Region::new(REGION))
        .credentials_provider(credentials)
        .force_path_style(true)
        .build();
    Client::from_conf(config)
}

fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).unwrap();
    data_encoding::HEXLOWER.encode(&random)
}
