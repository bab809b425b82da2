//! Who is measured, and how each is asked to do the same.

use std::cell::RefCell;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::measure::{self, Sample};
use super::rig::Rig;
use super::store::Store;
use super::support::{self, write_pattern};
use super::{BUCKET, plain_sdk};

/// What is fetched: each agent has a token of its own.
const fn kept(tls: bool) -> &'static str {
    if tls {
        "s3://bench/kept-tls"
    } else {
        "s3://bench/kept"
    }
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Put,
    PutPipe,
    Get,
    PlainSdk,
    AwsCli,
    Age,
    Rclone,
    Esdk,
}

use What::{Age, AwsCli, Esdk, Get, PlainSdk, Put, PutPipe, Rclone};

/// One of them, over http or https.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    pub what: What,
    pub tls: bool,
}

const fn http(what: What) -> Contender {
    Contender { what, tls: false }
}

const fn https(what: What) -> Contender {
    Contender { what, tls: true }
}

/// All, in the order of the report.
pub const ALL: &[Contender] = &[
    http(Put),
    http(PutPipe),
    http(Get),
    http(PlainSdk),
    http(AwsCli),
    http(Age),
    http(Esdk),
    http(Rclone),
    https(Put),
    https(Get),
    https(PlainSdk),
    https(AwsCli),
    https(Age),
];

impl Contender {
    pub fn name(self) -> String {
        let name = match self.what {
            Put => "strongroom put FILE",
            PutPipe => "cat | strongroom put -",
            Get => "strongroom get to a file",
            PlainSdk => "aws-sdk-s3 (Rust), not encrypted",
            AwsCli => "aws s3 cp, not encrypted",
            Age => "age | aws s3 cp -",
            Rclone => "rclone crypt",
            Esdk => "Python ESDK | aws s3 cp -",
        };
        format!("{name}{}", if self.tls { ", TLS" } else { "" })
    }

    /// The programs without which it cannot be measured.
    fn programs(self) -> &'static [&'static str] {
        match self.what {
            Put | PutPipe | Get | PlainSdk => &[],
            AwsCli | Esdk => &["aws"],
            Age => &["age", "aws"],
            Rclone => &["rclone"],
        }
    }
}

/// Store, agents and file.
pub struct Bench<'a> {
    store: &'a RefCell<Store>,
    plain: Rig,
    tls: Rig,
    dir: tempfile::TempDir,
    path: std::ffi::OsString,
    size: u64,
}

impl<'a> Bench<'a> {
    /// A file of `size` bytes in memory, and whoever has to do with it.
    pub fn new(store: &'a RefCell<Store>, size: u64) -> Self {
        let plain = Rig::start(&store.borrow().http, |_| {});
        let tls = Rig::over_tls(&store.borrow());
        let dir = tempfile::Builder::new()
            .prefix("strongroom-bench")
            .tempdir_in("/dev/shm");
        let bench = Self {
            store,
            plain,
            tls,
            dir: dir.unwrap(),
            path: path(),
            size,
        };
        write_pattern(&bench.file(), 1, size);
        bench
    }

    /// Makes what it needs: keys and settings of others, and what `get` reads.
    pub fn prepare(&self, contender: Contender) -> Result<(), String> {
        let script = match contender.what {
            Get => {
                // What is put later is dropped.
                self.store.borrow_mut().keep(usize::MAX);
                let file = self.file().display().to_string();
                let put = ["-q", "put", &file, kept(contender.tls)];
                let done = self.rig(contender.tls).agent.cli(put);
                self.store.borrow_mut().keep(0);
                return (done.code == Some(0)).then_some(()).ok_or(done.stderr);
            }
            Age => {
                "rm -f age.key; age-keygen -o age.key 2>/dev/null && age-keygen -y age.key > age.pub"
                    .to_owned()
            }
            Rclone => format!(
                "rclone --quiet config create null s3 provider Other endpoint {} \
                   access_key_id test-access-key secret_access_key test-secret-key \
                   force_path_style true no_check_bucket true >/dev/null
                 rclone --quiet config create --obscure crypt crypt remote=null:{BUCKET}/rclone \
                   password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \\n') >/dev/null",
                self.store.borrow().http
            ),
            Esdk => "head -c 32 /dev/urandom > esdk.key".to_owned(),
            Put | PutPipe | PlainSdk | AwsCli => return Ok(()),
        };
        let mut script = self.bash(contender.tls, &script);
        measure::run(&mut script, &[]).map(|_| ())
    }

    fn rig(&self, tls: bool) -> &Rig {
        if tls { &self.tls } else { &self.plain }
    }

    /// The program that it lacks here.
    pub fn lacks(&self, contender: Contender) -> Option<&'static str> {
        if contender.what == Esdk && !python().is_file() {
            return Some("the stock Python AWS Encryption SDK");
        }
        let missing = |program: &&&str| {
            !std::env::split_paths(&self.path).any(|dir: PathBuf| dir.join(program).is_file())
        };
        contender.programs().iter().find(missing).copied()
    }

    /// Which versions of the others these are.
    pub fn versions(&self, contenders: &[Contender]) -> Vec<String> {
        let mut all = Vec::new();
        for (what, script) in [
            (AwsCli, "aws --version | sed -E 's,/, ,;s/ Linux.*//'"),
            (Age, "echo age $(age --version)"),
            (Rclone, "rclone version | head -n 1"),
            (
                Esdk,
                "echo aws-encryption-sdk for Python $(\"$PYTHON\" -c 'import aws_encryption_sdk.identifiers as i; print(i.__version__)')",
            ),
        ] {
            if contenders.iter().any(|c| c.what == what) {
                let said = self.bash(false, script).output().unwrap().stdout;
                all.push(String::from_utf8_lossy(&said).trim().to_owned());
            }
        }
        all
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    fn bash(&self, tls: bool, script: &str) -> Command {
        let store = self.store.borrow();
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.dir.path())
            .env("PATH", &self.path)
            .env("PYTHON", python())
            .env("RCLONE_CONFIG", self.dir.path().join("rclone.conf"))
            .env("AWS_ACCESS_KEY_ID", "test-access-key")
            .env("AWS_SECRET_ACCESS_KEY", "test-secret-key")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CA_BUNDLE", store.authority.path())
            .env(
                "AWS_ENDPOINT_URL",
                if tls { &store.https } else { &store.http },
            );
        command
    }

    /// One run of one contender.
    pub fn run(&self, contender: Contender) -> Result<Sample, String> {
        let out = self.dir.path().join("out");
        let _ = std::fs::remove_file(&out);
        let tls = contender.tls;
        let agent = &self.rig(tls).agent;
        let ours = agent.processes();
        let (file, object) = (self.file(), format!("s3://{BUCKET}/file"));
        let (file, out) = (file.display().to_string(), out.display().to_string());
        let served = matches!(contender.what, Put | PutPipe | Get);
        let mut command = match contender.what {
            Put => agent.command(["-q", "put", &file, &object]),
            Get => agent.command(["-q", "get", kept(tls), &out]),
            PutPipe => {
                let cli = support::process::strongroom();
                let program = Path::new(cli.get_program()).display().to_string();
                let socket = agent.socket().display().to_string();
                let put = format!("{program} --socket {socket} -q put - {object}");
                self.bash(tls, &format!("cat file | {put}"))
            }
            PlainSdk => {
                let store = self.store.borrow();
                let endpoint = if tls { &store.https } else { &store.http };
                let authority = store.authority.path();
                plain_sdk::command(endpoint, authority, BUCKET, Path::new(&file))
            }
            AwsCli => self.bash(tls, "exec aws s3 cp --quiet file s3://bench/plain"),
            Age => self.bash(
                tls,
                "age -R age.pub file | aws s3 cp --quiet - s3://bench/age",
            ),
            Rclone => self.bash(tls, "exec rclone copyto --ignore-times file crypt:file"),
            // Suite and frame length as ours.
            Esdk => self.bash(
                tls,
                &format!(
                    "\"$PYTHON\" {} encrypt bench bench esdk.key file /dev/fd/3 '{{}}' {} 3>&1 >/dev/null | aws s3 cp --quiet - s3://bench/esdk",
                    support::root().join("tests/readers/esdk.py").display(),
                    256 << 10
                ),
            ),
        };
        if contender.what == Get {
            touch(Path::new(&out), self.size);
        }
        self.store.borrow_mut().count();
        let before = self.store.borrow().cpu();
        let mut sample = measure::run(&mut command, if served { &ours } else { &[] })?;
        sample.store_cpu = self.store.borrow().cpu().saturating_sub(before);
        sample.requests = self.store.borrow_mut().count().requests;
        sample.bytes = self.size;
        Ok(sample)
    }
}

/// Makes the machine have `size` bytes of memory at hand for a file: a virtual
/// one gives free memory back to its host, and gets it again page by page, at
/// several times the cost of all that is measured here.
fn touch(path: &Path, size: u64) {
    let mut file = std::fs::File::create(path).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(size), &mut file).unwrap();
    std::fs::remove_file(path).unwrap();
}

/// Where programs are: those that tests/setup/peers installed come first.
fn path() -> std::ffi::OsString {
    let mut path = support::cache().join("peers/bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

/// A Python with the stock AWS Encryption SDK.
fn python() -> PathBuf {
    support::cache().join("venv/bin/python")
}
