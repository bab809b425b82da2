//! The module that other tests break tokens with, by itself: it passes calls
//! on, and does to each what it is asked.
//!
//! The calls are made in a child, this test binary again, because a module is
//! configured by its process's environment and some calls end it.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use cryptoki_sys::*;
use serde::{Deserialize, Serialize};
use support::shim::*;
use support::*;

/// The environment variable with the calls that [`child`] shall make.
const JOB: &str = "STRONGROOM_TEST_SHIM_JOB";
/// CKM_CLOUDHSM_AES_GCM.
const CLOUDHSM: u64 = CKM_VENDOR_DEFINED | CKM_AES_GCM;
/// CKM_CLOUDKMS_AES_GCM.
const CLOUDKMS: u64 = CKM_VENDOR_DEFINED | 0x1E101;

/// What the child shall call, in this order, in one logged-in session.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Step {
    /// C_FindObjects for this label; the first is the key of what follows.
    Find(String),
    /// C_GenerateRandom of 32 bytes.
    Random,
    /// AES-GCM with this IV (empty is a null pointer) of "plaintext"; yields
    /// the IV afterwards and the output.
    Encrypt(u64, Vec<u8>),
    /// The same, without the AAD, of what an `Encrypt` yielded.
    Decrypt(u64, Vec<u8>, Vec<u8>),
    /// C_OpenSession; the session is kept.
    Open,
    Mechanism(u64),
    Label,
    Sleep(u64),
}

#[derive(Serialize, Deserialize)]
struct Job {
    module: std::path::PathBuf,
    pin: String,
    steps: Vec<Step>,
}

/// What a step yielded, or its code.
type Yield = Result<Vec<Vec<u8>>, String>;

/// A token with a key `archive` and a key `decoy`, and the module before it.
struct Rig {
    hsm: Hsm,
    shim: Shim,
}

impl Rig {
    fn new() -> Self {
        let hsm = Hsm::with_key(&[7; 32]);
        hsm.create(&KeySpec::new("decoy").bytes(&[8; 32]).any_mechanism());
        Self {
            shim: Shim::new(&hsm::module()),
            hsm,
        }
    }

    fn spawn(&self, steps: &[Step]) -> Child {
        let job = Job {
            module: self.shim.module(),
            pin: self.hsm.pin(),
            steps: steps.to_vec(),
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serde_json::to_vec(&job).unwrap()).unwrap();
        let (_, path) = file.keep().unwrap();
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(JOB, path)
            .env(self.hsm.kind().variable(), self.hsm.conf())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[track_caller]
    fn run(&self, steps: &[Step]) -> Vec<Yield> {
        let output = self.spawn(steps).wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        yields(&output)
    }

    /// The signal that ends the child.
    #[track_caller]
    fn ends(&self, steps: &[Step]) -> i32 {
        let output = self.spawn(steps).wait_with_output().unwrap();
        output
            .status
            .signal()
            .unwrap_or_else(|| panic!("{}", text(&output)))
    }
}

fn text(output: &Output) -> String {
    format!(
        "{:?}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn yields(output: &Output) -> Vec<Yield> {
    let out = String::from_utf8_lossy(&output.stdout);
    let lines = out.lines().filter_map(|line| line.strip_prefix("yield "));
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Not a test by itself: the child that [`Rig::spawn`] starts.
#[test]
fn child() {
    let Some(file) = std::env::var_os(JOB) else {
        return;
    };
    let job: Job = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    std::fs::remove_file(file).unwrap();
    let pkcs11 = Pkcs11::new(&job.module).unwrap();
    pkcs11
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .unwrap();
    let slots = pkcs11.get_slots_with_initialized_token().unwrap();
    let session = pkcs11.open_rw_session(slots[0]).unwrap();
    let mut logged_in = false;
    let mut kept = Vec::new();
    let mut key = None;
    // libtest has begun a line.
    println!();
    for step in job.steps {
        let yielded = if logged_in {
            make(&pkcs11, slots[0], &session, step, &mut key, &mut kept)
        } else {
            let pin = AuthPin::new(job.pin.clone().into());
            session
                .login(UserType::User, Some(&pin))
                .map_err(|e| format!("{e:?}"))
                .and_then(|()| {
                    logged_in = true;
                    make(&pkcs11, slots[0], &session, step, &mut key, &mut kept)
                })
        };
        println!("yield {}", serde_json::to_string(&yielded).unwrap());
    }
}

fn make(
    pkcs11: &Pkcs11,
    slot: Slot,
    session: &Session,
    step: Step,
    key: &mut Option<ObjectHandle>,
    kept: &mut Vec<Session>,
) -> Yield {
    let said = |error: cryptoki::error::Error| format!("{error:?}");
    Ok(match step {
        Step::Find(label) => {
            let found = session
                .find_objects(&[Attribute::Label(label.into_bytes())])
                .map_err(said)?;
            *key = found.first().copied();
            vec![vec![u8::try_from(found.len()).unwrap()]]
        }
        Step::Random => vec![session.generate_random_vec(32).map_err(said)?],
        Step::Encrypt(mechanism, mut iv) => {
            let out = gcm(mechanism, &mut iv, |mechanism| {
                session.encrypt(mechanism, key.unwrap(), b"plaintext")
            });
            vec![out.map_err(said)?, iv]
        }
        Step::Decrypt(mechanism, mut iv, ciphertext) => {
            let out = gcm(mechanism, &mut iv, |mechanism| {
                session.decrypt(mechanism, key.unwrap(), &ciphertext)
            });
            vec![out.map_err(said)?]
        }
        Step::Open => {
            kept.push(pkcs11.open_rw_session(slot).map_err(said)?);
            vec![]
        }
        Step::Mechanism(mechanism) => {
            let mechanism = if mechanism >= CKM_VENDOR_DEFINED {
                cryptoki::mechanism::MechanismType::new_vendor_defined(mechanism).unwrap()
            } else {
                mechanism.try_into().unwrap()
            };
            pkcs11.get_mechanism_info(slot, mechanism).map_err(said)?;
            vec![]
        }
        Step::Label => {
            let got = session
                .get_attributes(key.unwrap(), &[AttributeType::Label])
                .map_err(said)?;
            match &got[..] {
                [Attribute::Label(label)] => vec![label.clone()],
                _ => vec![],
            }
        }
        Step::Sleep(ms) => {
            std::thread::sleep(Duration::from_millis(ms));
            vec![]
        }
    })
}

/// Calls `with` with AES-GCM under this mechanism and IV, and an AAD.
fn gcm<T>(mechanism: u64, iv: &mut [u8], with: impl FnOnce(&Mechanism<'_>) -> T) -> T {
    let aad = b"context";
    if mechanism == CKM_AES_GCM {
        let params = GcmParams::new(iv, aad, 128.into()).unwrap();
        return with(&Mechanism::AesGcm(params));
    }
    let params = CK_GCM_PARAMS {
        pIv: if iv.is_empty() {
            std::ptr::null_mut()
        } else {
            iv.as_mut_ptr()
        },
        ulIvLen: iv.len() as u64,
        ulIvBits: iv.len() as u64 * 8,
        pAAD: aad.as_ptr().cast_mut(),
        ulAADLen: aad.len() as u64,
        ulTagBits: 128,
    };
    let kind = cryptoki::mechanism::MechanismType::new_vendor_defined(mechanism).unwrap();
    with(&Mechanism::VendorDefined(VendorDefinedMechanism::new(
        kind,
        Some(&params),
    )))
}

fn find() -> Step {
    Step::Find(hsm::KEY.into())
}

fn encrypt() -> Step {
    Step::Encrypt(CKM_AES_GCM, vec![9; 12])
}

/// Whether a step ended with this code, by the name that cryptoki has for it.
#[track_caller]
fn refused(yielded: &Yield, name: &str) {
    let error = yielded.as_ref().unwrap_err();
    assert!(error.contains(&format!("({name}, ")), "{name}: {error}");
}

fn ok(yielded: &Yield) -> &[Vec<u8>] {
    yielded.as_ref().unwrap()
}

/// "plaintext" under key and IV of [`encrypt`], as the token gives it.
fn sealed() -> &'static Vec<u8> {
    static SEALED: OnceLock<Vec<u8>> = OnceLock::new();
    SEALED.get_or_init(|| ok(&Rig::new().run(&[find(), encrypt()])[1])[0].clone())
}

#[test]
fn calls_are_passed_on_and_counted_over_processes() {
    let rig = Rig::new();
    let steps = [
        find(),
        encrypt(),
        Step::Decrypt(CKM_AES_GCM, vec![9; 12], sealed().clone()),
        Step::Random,
        Step::Label,
    ];
    for round in 1..=2 {
        let yields = rig.run(&steps);
        assert_eq!(ok(&yields[1])[0], *sealed());
        assert_eq!(ok(&yields[2])[0], b"plaintext");
        assert_eq!(ok(&yields[4])[0], hsm::KEY.as_bytes());
        assert_eq!(rig.shim.calls(C_Initialize), round);
        assert_eq!(rig.shim.calls(C_GenerateRandom), round);
        assert_eq!(rig.shim.calls(C_EncryptInit), round);
        // cryptoki asks for the length first.
        assert_eq!(rig.shim.calls(C_Encrypt), 2 * round);
        assert_eq!(rig.shim.buffered(C_Encrypt), round);
        assert_eq!(rig.shim.buffered(C_Decrypt), round);
    }
    assert_eq!(rig.shim.rejected(), 0);
    assert!(rig.shim.counts().contains_key("C_FindObjects"));
}

#[test]
fn a_code_comes_at_the_call_it_is_asked_for_and_leaves_nothing_active() {
    let rig = Rig::new();
    let fault = Action::Return(CKR_DEVICE_ERROR);
    // The third and fourth: the second encryption, of which each has a query.
    let plan = Plan::default().with(C_Encrypt, 4, Some(1), fault);
    rig.shim.plan(&plan);
    let yields = rig.run(&[find(), encrypt(), encrypt(), encrypt()]);
    ok(&yields[1]);
    refused(&yields[2], "DeviceError");
    assert_eq!(ok(&yields[3])[0], *sealed());
    assert_eq!(rig.shim.happened(0), 1);
    // It is not due again in another process.
    let yields = rig.run(&[find(), encrypt(), encrypt()]);
    ok(&yields[2]);

    rig.shim
        .plan(&Plan::default().always(C_EncryptInit, Action::Return(CKR_SESSION_CLOSED)));
    let yields = rig.run(&[find(), encrypt(), encrypt()]);
    refused(&yields[1], "SessionClosed");
    refused(&yields[2], "SessionClosed");
    rig.shim.clear();
    ok(&rig.run(&[find(), encrypt()])[1]);
}

#[test]
fn refused_logins_are_counted() {
    let rig = Rig::new();
    rig.shim
        .plan(&Plan::default().once(C_Login, Action::Return(CKR_PIN_INCORRECT)));
    let yields = rig.run(&[find(), find()]);
    refused(&yields[0], "PinIncorrect");
    ok(&yields[1]);
    assert_eq!((rig.shim.calls(C_Login), rig.shim.rejected()), (2, 1));
}

#[test]
fn it_crashes_hangs_and_is_slow() {
    let rig = Rig::new();
    for (action, signal) in [(Action::Segv, 11), (Action::Abort, 6)] {
        rig.shim.plan(&Plan::default().once(C_Encrypt, action));
        assert_eq!(rig.ends(&[find(), encrypt()]), signal);
        ok(&rig.run(&[find(), encrypt()])[1]);
    }
    rig.shim
        .plan(&Plan::default().once(C_GenerateRandom, Action::Hang));
    let mut child = rig.spawn(&[find(), Step::Random]);
    std::thread::sleep(Duration::from_secs(2));
    assert!(child.try_wait().unwrap().is_none());
    assert_eq!(rig.shim.happened(0), 1);
    child.kill().unwrap();
    child.wait().unwrap();

    rig.shim
        .plan(&Plan::default().once(C_GenerateRandom, Action::Sleep(700)));
    let begun = Instant::now();
    ok(&rig.run(&[find(), Step::Random])[1]);
    assert!(begun.elapsed() >= Duration::from_millis(700));
    let slow = Plan {
        encrypt_latency_us: 100_000,
        ..Plan::default()
    };
    rig.shim.plan(&slow);
    let begun = Instant::now();
    rig.run(&[
        find(),
        encrypt(),
        encrypt(),
        encrypt(),
        encrypt(),
        encrypt(),
    ]);
    assert!(begun.elapsed() >= Duration::from_millis(500));
}

#[test]
fn what_comes_back_is_garbled() {
    let rig = Rig::new();
    let seal = |function, action: Action| {
        rig.shim.plan(&Plan::default().always(function, action));
        rig.run(&[find(), encrypt(), Step::Label])
    };
    let flipped: Vec<u8> = sealed().iter().map(|byte| byte ^ 0xA5).collect();
    assert_eq!(ok(&seal(C_Encrypt, Action::Corrupt)[1])[0], flipped);
    assert_eq!(ok(&seal(C_Encrypt, Action::Zero)[1])[0], [0; 25]);
    assert_ne!(
        seal(C_GetAttributeValue, Action::Corrupt)[2].clone().ok(),
        Some(vec![hsm::KEY.into()])
    );
    assert!(seal(C_FindObjects, Action::Corrupt)[1].is_err());

    rig.shim
        .plan(&Plan::default().once(C_GenerateRandom, Action::Zero));
    assert_eq!(ok(&rig.run(&[Step::Random])[0])[0], [0; 32]);
}

#[test]
fn sessions_logins_and_handles_are_lost() {
    let rig = Rig::new();
    rig.shim
        .plan(&Plan::default().once(C_GenerateRandom, Action::LoseSessions));
    let yields = rig.run(&[find(), Step::Random]);
    refused(&yields[1], "SessionHandleInvalid");

    rig.shim
        .plan(&Plan::default().once(C_EncryptInit, Action::Logout));
    let yields = rig.run(&[find(), encrypt()]);
    assert!(yields[1].is_err(), "{:?}", yields[1]);

    rig.shim
        .plan(&Plan::default().once(C_EncryptInit, Action::SwapHandle("decoy".into())));
    let yields = rig.run(&[find(), encrypt(), encrypt()]);
    assert_ne!(ok(&yields[1])[0], *sealed());
    assert_eq!(ok(&yields[2])[0], *sealed());
    // Handed out by C_FindObjects, it lasts.
    rig.shim
        .plan(&Plan::default().once(C_FindObjects, Action::SwapHandle("decoy".into())));
    assert_ne!(ok(&rig.run(&[find(), encrypt()])[1])[0], *sealed());
}

#[test]
fn vendors_choose_their_own_ivs() {
    let rig = Rig::new();
    let mechanism = |m| Step::Mechanism(m);
    let with = |m, iv: &[u8]| Step::Encrypt(m, iv.to_vec());
    let open = |m, iv: &[u8], sealed: &[u8]| {
        let steps = [find(), Step::Decrypt(m, iv.to_vec(), sealed.to_vec())];
        assert_eq!(ok(&rig.run(&steps)[1])[0], b"plaintext");
    };
    let zeros = [0; 12];

    rig.shim.plan(&Plan::vendor(Kind::ZeroWriteback));
    let yields = rig.run(&[find(), with(CKM_AES_GCM, &zeros), encrypt()]);
    let [out, iv] = ok(&yields[1]) else { panic!() };
    assert_ne!(iv[..], zeros);
    refused(&yields[2], "MechanismParamInvalid");
    open(CKM_AES_GCM, iv, out);
    rig.shim.clear();
    open(CKM_AES_GCM, iv, out);

    rig.shim.plan(&Plan::vendor(Kind::Gcp));
    let steps = [
        find(),
        with(CLOUDKMS, &zeros),
        encrypt(),
        mechanism(CLOUDKMS),
        mechanism(CKM_AES_GCM),
    ];
    let yields = rig.run(&steps);
    let [out, iv] = ok(&yields[1]) else { panic!() };
    refused(&yields[2], "MechanismInvalid");
    ok(&yields[3]);
    refused(&yields[4], "MechanismInvalid");
    open(CLOUDKMS, iv, out);

    rig.shim.plan(&Plan::vendor(Kind::VendorPrefix));
    let steps = [
        find(),
        with(CLOUDHSM, &[]),
        with(CLOUDHSM, &zeros),
        mechanism(CLOUDHSM),
        mechanism(CKM_AES_GCM),
    ];
    let yields = rig.run(&steps);
    let prefixed = &ok(&yields[1])[0];
    assert_eq!(prefixed.len(), 12 + 9 + 16);
    refused(&yields[2], "MechanismParamInvalid");
    ok(&yields[3]);
    refused(&yields[4], "MechanismInvalid");
    open(CLOUDHSM, &[], prefixed);
    rig.shim.clear();
    open(CKM_AES_GCM, &prefixed[..12], &prefixed[12..]);

    rig.shim.plan(&Plan::vendor(Kind::LunaFips));
    let yields = rig.run(&[find(), encrypt()]);
    let appended = &ok(&yields[1])[0];
    assert_eq!(appended.len(), 9 + 16 + 16);
    open(CKM_AES_GCM, &zeros, appended);

    rig.shim.plan(&Plan::vendor(Kind::NoGcm));
    let yields = rig.run(&[find(), encrypt(), mechanism(CKM_AES_GCM)]);
    refused(&yields[1], "MechanismInvalid");
    refused(&yields[2], "MechanismInvalid");
}

#[test]
fn vendors_choose_their_ivs_badly() {
    let rig = Rig::new();
    let zero = Step::Encrypt(CKM_AES_GCM, vec![0; 12]);
    let ivs = |iv| {
        rig.shim.plan(&Plan::vendor_iv(Kind::ZeroWriteback, iv));
        let yields = rig.run(&[find(), zero.clone(), zero.clone()]);
        [ok(&yields[1])[1].clone(), ok(&yields[2])[1].clone()]
    };
    let [first, second] = ivs(IvMode::Random);
    assert_ne!(first, second);
    let [first, second] = ivs(IvMode::Same);
    assert_eq!(first, second);
    assert_ne!(first, [0; 12]);
    for iv in [IvMode::Untold, IvMode::Zero] {
        assert_eq!(ivs(iv), [[0; 12], [0; 12]]);
    }
}

#[test]
fn sessions_are_few_and_keys_need_to_warm_up() {
    let rig = Rig::new();
    let few = Plan {
        max_sessions: Some(3),
        ..Plan::default()
    };
    rig.shim.plan(&few);
    let yields = rig.run(&[Step::Open, Step::Open, Step::Open]);
    ok(&yields[1]);
    refused(&yields[2], "SessionCount");

    let cold = Plan {
        warm_up_ms: 500,
        ..Plan::default()
    };
    rig.shim.plan(&cold);
    let yields = rig.run(&[find(), encrypt(), Step::Sleep(600), encrypt()]);
    refused(&yields[1], "FunctionFailed");
    assert_eq!(ok(&yields[3])[0], *sealed());
}
