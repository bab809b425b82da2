//! Who is measured, and how each is asked to do the same.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};

use super::measure::{self, Sample};
use super::store::Store;
use super::support::{self, Agent, Hsm, value, write_pattern};

/// Asks this program to upload a file with the SDK's defaults, in the clear.
pub const PLAIN: &str = "--plain-sdk";
/// Part size of that, in bytes: ours and the AWS command line's.
const PART: usize = 8 << 20;
/// Parts in flight of that: the AWS command line's `max_concurrent_requests`.
const IN_FLIGHT: usize = 10;
const BUCKET: &str = "bench";
const KEPT: &str = "s3://bench/kept";

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Put,
    PutPipe,
    Get,
    PlainSdk,
    AwsCli,
    Age,
    Rclone,
}

use Contender::{Age, AwsCli, Get, PlainSdk, Put, PutPipe, Rclone};

/// All, in the order of the report.
pub const ALL: &[Contender] = &[Put, PutPipe, Get, PlainSdk, AwsCli, Age, Rclone];

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Put => "strongroom put FILE",
            PutPipe => "strongroom put - (pipe)",
            Get => "strongroom get to a file",
            PlainSdk => "aws-sdk-s3, no encryption",
            AwsCli => "aws s3 cp, no encryption",
            Age => "age | aws s3 cp -",
            Rclone => "rclone crypt",
        }
    }

    /// The program without which it cannot be measured.
    fn program(self) -> Option<&'static str> {
        match self {
            Put | PutPipe | Get | PlainSdk => None,
            AwsCli => Some("aws"),
            Age => Some("age"),
            Rclone => Some("rclone"),
        }
    }
}

/// Store, agent and file.
pub struct Bench {
    store: RefCell<Store>,
    pub agent: Agent,
    _hsm: Hsm,
    dir: tempfile::TempDir,
    path: std::ffi::OsString,
}

impl Bench {
    /// A file of `size` bytes in memory, and whoever has to do with it.
    pub fn new(size: u64) -> Self {
        let store = Store::start();
        let hsm = Hsm::new();
        let mut agent = Agent::prepare(&hsm, support::Store::at(&store.endpoint), |config| {
            config["s3"]["payload_signing"] = value("never");
        });
        agent.set("STRONGROOM_LOG", "info");
        agent.launch();
        agent.await_ready().unwrap();
        let dir = tempfile::Builder::new()
            .prefix("strongroom-bench")
            .tempdir_in("/dev/shm");
        let dir = dir.unwrap();
        write_pattern(&dir.path().join("file"), 1, size);
        let bin = support::cache().join("peers/bin");
        let mut path = bin.into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let bench = Self {
            store: RefCell::new(store),
            agent,
            _hsm: hsm,
            dir,
            path,
        };
        bench.set_up();
        // What `get` reads; what is put later is dropped.
        bench.store.borrow_mut().keep(1 << 40);
        let file = bench.file().display().to_string();
        bench.agent.cli(["-q", "put", &file, KEPT]).ok();
        bench.store.borrow_mut().keep(0);
        bench
    }

    fn set_up(&self) {
        if self.has(&Age) {
            self.shell("age-keygen -o age.key 2>/dev/null && age-keygen -y age.key > age.pub");
        }
        if self.has(&Rclone) {
            let endpoint = &self.store.borrow().endpoint;
            self.shell(&format!(
                "export RCLONE_CONFIG=rclone.conf
                 rclone config create null s3 provider Other endpoint {endpoint} \
                   access_key_id test-access-key secret_access_key test-secret-key \
                   force_path_style true no_check_bucket true >/dev/null
                 rclone config create crypt crypt remote null:{BUCKET}/rclone \
                   password \"$(rclone obscure \"$(head -c 24 /dev/urandom | base64)\")\" >/dev/null"
            ));
        }
    }

    fn shell(&self, script: &str) {
        assert!(self.bash(script).status().unwrap().success(), "{script}");
    }

    /// Whether it can be measured here.
    pub fn has(&self, contender: &Contender) -> bool {
        let found = |program: &str| {
            std::env::split_paths(&self.path).any(|dir: PathBuf| dir.join(program).is_file())
        };
        let program = contender.program();
        program.is_none_or(found) && (*contender != Age || found("aws"))
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    fn bash(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.dir.path())
            .env("PATH", &self.path)
            .env("RCLONE_CONFIG", "rclone.conf")
            .env("AWS_ACCESS_KEY_ID", "test-access-key")
            .env("AWS_SECRET_ACCESS_KEY", "test-secret-key")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL", &self.store.borrow().endpoint);
        command
    }

    /// One run of one contender.
    pub fn run(&self, contender: &Contender) -> Sample {
        let out = self.dir.path().join("out");
        let _ = std::fs::remove_file(&out);
        let ours = self.agent.processes();
        let object = format!("s3://{BUCKET}/file");
        let file = self.file().display().to_string();
        self.store.borrow_mut().requests();
        let mut sample = match contender {
            Put => measure::run(
                &mut self.agent.command(["-q", "put", &file, &object]),
                &ours,
            ),
            PutPipe => {
                let cli = support::process::strongroom();
                let program = Path::new(cli.get_program()).display().to_string();
                let socket = self.agent.socket().display().to_string();
                let script = format!("cat file | {program} --socket {socket} -q put - {object}");
                measure::run(&mut self.bash(&script), &ours)
            }
            Get => {
                let out = out.display().to_string();
                measure::run(&mut self.agent.command(["-q", "get", KEPT, &out]), &ours)
            }
            PlainSdk => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args([PLAIN, &self.store.borrow().endpoint, &file]);
                measure::run(&mut command, &[])
            }
            AwsCli => measure::run(
                &mut self.bash(&format!("exec aws s3 cp --quiet file s3://{BUCKET}/plain")),
                &[],
            ),
            Age => measure::run(
                &mut self.bash(&format!(
                    "age -R age.pub file | aws s3 cp --quiet - s3://{BUCKET}/age"
                )),
                &[],
            ),
            Rclone => measure::run(&mut self.bash("exec rclone copyto file crypt:file"), &[]),
        };
        sample.requests = self.store.borrow_mut().requests();
        sample
    }

    /// Requests since somebody asked last.
    pub fn requests(&self) -> u64 {
        self.store.borrow_mut().requests()
    }
}

/// What anybody would write first: parts read from the file, sent with the
/// SDK's defaults, several at once.
pub fn plain_sdk() {
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(&args[2])
            .force_path_style(true)
            .credentials_provider(Credentials::new(
                "test-access-key",
                "secret",
                None,
                None,
                "bench",
            ))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        let client = aws_sdk_s3::Client::from_conf(config);
        let begun = client
            .create_multipart_upload()
            .bucket(BUCKET)
            .key("plain-sdk");
        let id = begun.send().await.unwrap().upload_id.unwrap();
        let mut file = tokio::fs::File::open(&args[3]).await.unwrap();
        let (mut parts, mut sending) = (Vec::new(), tokio::task::JoinSet::new());
        let done = |sent: Option<Result<CompletedPart, _>>| {
            sent.map(|part: Result<_, tokio::task::JoinError>| part.unwrap())
        };
        for number in 1.. {
            let mut buffer = Vec::with_capacity(PART);
            let mut part = tokio::io::AsyncReadExt::take(&mut file, PART as u64);
            let read = tokio::io::AsyncReadExt::read_to_end(&mut part, &mut buffer);
            if read.await.unwrap() == 0 {
                break;
            }
            if sending.len() == IN_FLIGHT {
                parts.extend(done(sending.join_next().await));
            }
            let sent = client
                .upload_part()
                .bucket(BUCKET)
                .key("plain-sdk")
                .upload_id(&id)
                .part_number(number)
                .body(ByteStream::from(buffer))
                .send();
            sending.spawn(async move {
                let etag = sent.await.unwrap().e_tag.unwrap();
                CompletedPart::builder()
                    .part_number(number)
                    .e_tag(etag)
                    .build()
            });
        }
        while let Some(part) = done(sending.join_next().await) {
            parts.push(part);
        }
        parts.sort_by_key(CompletedPart::part_number);
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        client
            .complete_multipart_upload()
            .bucket(BUCKET)
            .key("plain-sdk")
            .upload_id(&id)
            .multipart_upload(parts)
            .send()
            .await
            .unwrap();
    });
}
