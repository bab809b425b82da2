//! One agent on one breakable token, and one cell after the other on it.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use strongroom::api::TokenStatus;
use toml_edit::value;

use crate::faults::{Calls, Fault};
use crate::support::process::{eventually, signal};
use crate::support::shim::*;
use crate::support::tamper::read;
use crate::support::{Agent, Hsm, KeySpec, Weed, hsm, pattern};

/// `call_timeout` of these agents.
const CALL: Duration = Duration::from_secs(1);
/// What a client waits at most: for a session, for the call, and what a busy
/// machine adds to both.
const DEADLINE: Duration = Duration::from_secs(6);
/// The promise: the next request works, the state is told.
const SOON: Duration = Duration::from_secs(5);

/// When a fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// While a worker starts: the last one was killed.
    Start,
    /// While one serves.
    Work,
}

/// An agent, its token and what it has stored.
pub(crate) struct Rig {
    shim: Shim,
    hsm: Hsm,
    agent: Agent,
    bucket: String,
    /// Keys that were acknowledged.
    stored: Vec<String>,
    verify: bool,
    asked: usize,
    logged: usize,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let hsm = Hsm::new();
        hsm.create(&KeySpec::new("decoy"));
        let shim = Shim::new(&hsm::module());
        let weed = Weed::shared();
        let agent = Agent::start(&hsm, weed, |config| {
            shim.configure(config);
            let tokens = config["token"].as_array_of_tables_mut().unwrap();
            for token in tokens.iter_mut() {
                token["call_timeout"] = value("1 s");
                token["sessions"] = value(2);
            }
        });
        let mut rig = Self {
            shim,
            hsm,
            agent,
            bucket: weed.bucket("faults"),
            stored: Vec::new(),
            verify: false,
            asked: 0,
            logged: 0,
        };
        assert_eq!(rig.put(), Ok(201));
        rig
    }

    /// Runs one cell; how often its fault happened.
    pub(crate) fn run(
        &mut self,
        stage: Stage,
        function: Function,
        fault: &Fault,
    ) -> Result<u64, String> {
        self.logged = self.agent.log().len();
        self.verify_wraps(fault.silent)?;
        let rejected = self.shim.rejected();
        let plan = match fault.once {
            true => Plan::default().once(function, fault.action.clone()),
            false => Plan::default().always(function, fault.action.clone()),
        };
        // It is asked only after a search that found nothing.
        let plan = match function {
            C_GetSessionInfo => plan.always(C_FindObjectsInit, Action::Logout),
            _ => plan,
        };
        self.shim.plan(&plan);
        if stage == Stage::Start {
            let worker = self.worker().ok_or("no worker to kill")?;
            signal(worker, Signal::KILL);
            // A request on its way to the old one would fail for that alone,
            // and one that comes before the next one for that.
            let began = || self.shim.happened(0) > 0 || self.is_ready(Some(worker));
            eventually(SOON, || began().then_some(())).ok_or("no worker was started")?;
        }
        let mut put = self.put()?;
        if (stage, function) == (Stage::Work, C_GenerateRandom) {
            // Random bytes are fetched ahead: until they are used up.
            for _ in 0..150 {
                if put != 201 || (fault.once && self.shim.happened(0) > 0) {
                    break;
                }
                put = self.put()?;
            }
        }
        let got = self.get()?;
        if ![201, 503].contains(&put) || ![200, 503].contains(&got) {
            return Err(format!("put {put}, get {got}"));
        }
        let mut noticed = put != 201 || got != 200;
        let happened = self.shim.happened(0);
        if noticed && !fault.once {
            noticed = self.told(fault)?;
        }
        self.shim.clear();
        if noticed && fault.calls == Calls::Pin {
            // Nothing is tried with a PIN that was refused.
            let logins = self.shim.calls(C_Login);
            std::thread::sleep(Duration::from_millis(300));
            if self.shim.calls(C_Login) != logins {
                return Err("a refused PIN was tried again".into());
            }
            self.hsm.write_pin(&self.hsm.pin_file(), &self.hsm.pin());
        }
        if noticed && fault.calls != Calls::Waiting {
            self.agent.signal(Signal::HUP);
        }
        self.works_again()?;
        if self.shim.rejected() > rejected + 1 {
            return Err("a rejected PIN was tried twice".into());
        }
        Ok(happened)
    }

    /// A fault without an error code ends in "not ready", and in no more
    /// wraps, within a probe or two.
    pub(crate) fn is_noticed(&mut self, plan: &Plan) {
        self.shim.plan(plan);
        let noticed = eventually(Duration::from_secs(25), || {
            let token = self.token()?;
            (token.health != "ready").then_some(token)
        });
        let token = noticed.unwrap_or_else(|| panic!("{}", self.recent_log()));
        crate::support::tell(&format!("noticed: {} ({:?})", token.health, token.detail));
        assert_eq!(self.put(), Ok(503));
        self.shim.clear();
        self.agent.signal(Signal::HUP);
        self.works_again().unwrap();
    }

    /// What was stored is read although this happens on the way.
    pub(crate) fn reads_in_spite_of(&mut self, plan: &Plan) {
        self.shim.plan(plan);
        assert_eq!(self.get(), Ok(200), "{}", self.recent_log());
        assert_eq!(self.shim.happened(0), 1);
        self.shim.clear();
    }

    /// Nothing is in S3 but what was acknowledged, and that opens.
    pub(crate) fn finish(self) -> Result<(), String> {
        let weed = Weed::shared();
        let (mut there, mut stored) = (weed.list(&self.bucket, ""), self.stored);
        there.retain(|key| !key.starts_with(".strongroom/"));
        there.sort();
        stored.sort();
        if there != stored || !weed.list_uploads(&self.bucket).is_empty() {
            return Err(format!("S3 holds {there:?}, acknowledged {stored:?}"));
        }
        let wrong = |key: &&String| {
            let reply = read(&self.agent, &self.bucket, key);
            (reply.status, &reply.body) != (200, &content(key))
        };
        match stored.iter().find(wrong) {
            None => Ok(()),
            Some(key) => Err(format!("{key} was acknowledged and does not read back")),
        }
    }

    /// What the agent logged since the cell began.
    pub(crate) fn recent_log(&self) -> String {
        let log = self.agent.log();
        let recent = log.get(self.logged..).unwrap_or_default();
        let lines: Vec<_> = recent.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn verify_wraps(&mut self, on: bool) -> Result<(), String> {
        if self.verify != on {
            self.verify = on;
            self.agent.reconfigure(|config| {
                let tokens = config["token"].as_array_of_tables_mut().unwrap();
                for token in tokens.iter_mut() {
                    token["verify_wraps"] = value(on);
                }
            });
            let former = self.worker();
            self.agent.signal(Signal::HUP);
            eventually(SOON, || (self.worker() != former).then_some(()))
                .ok_or("the worker was not replaced for verify_wraps")?;
            self.works_again()?;
        }
        Ok(())
    }

    /// The state says what has to be mended, soon; false if it says after all
    /// that nothing has to be, although the fault goes on.
    fn told(&mut self, fault: &Fault) -> Result<bool, String> {
        let wanted = match fault.calls {
            Calls::Waiting => return Ok(true),
            // What is wrong without a code may look like a token that is away.
            Calls::Mending if !matches!(fault.action, Action::Return(_)) => return Ok(true),
            Calls::Mending => "misconfigured",
            Calls::Pin => "locked",
        };
        let began = Instant::now();
        let mut last = String::new();
        while began.elapsed() < SOON {
            if let Some(token) = self.token() {
                if token.health == wanted && token.hint.is_some() {
                    return Ok(true);
                }
                if token.health == "ready" && self.put()? == 201 && self.get()? == 200 {
                    return Ok(false);
                }
                last = format!("{} ({:?})", token.health, token.detail);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("not told: status says {last}"))
    }

    /// The next put and get work within five seconds.
    fn works_again(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let mut last = 0;
        while began.elapsed() < SOON {
            last = self.put()?;
            if last == 201 && self.get()? == 200 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let status = self.agent.try_status().map(|status| status.tokens);
        Err(format!(
            "no request worked within 5 s (put {last}): {status:?}"
        ))
    }

    /// Puts a new object: its status, if all is well about the answer.
    fn put(&mut self) -> Result<u16, String> {
        self.asked += 1;
        let key = format!("o/{}", self.asked);
        let target = format!("/v1/objects/{}/{key}", self.bucket);
        let began = Instant::now();
        let reply = self.agent.http("PUT", &target, &[], &content(&key));
        in_time("put", began)?;
        match reply.status {
            201 => self.stored.push(key),
            503 if reply.header("retry-after").is_some() => {}
            status => return Err(format!("put: {status} {}", reply.text())),
        }
        Ok(reply.status)
    }

    /// Gets the last object that was acknowledged.
    fn get(&self) -> Result<u16, String> {
        let key = self.stored.last().ok_or("nothing was ever stored")?;
        let began = Instant::now();
        let reply = read(&self.agent, &self.bucket, key);
        in_time("get", began)?;
        match reply.status {
            200 if reply.body == content(key) => {}
            503 if reply.header("retry-after").is_some() => {}
            status => return Err(format!("get {key}: {status} {}", reply.text())),
        }
        Ok(reply.status)
    }

    fn worker(&self) -> Option<u32> {
        eventually(SOON, || self.now_working())
    }

    /// Whether a worker other than `former` serves.
    fn is_ready(&self, former: Option<u32>) -> bool {
        let new = |token: TokenStatus| token.health == "ready" && token.worker_pid != former;
        self.token().is_some_and(new)
    }

    fn now_working(&self) -> Option<u32> {
        self.token()?.worker_pid
    }

    fn token(&self) -> Option<TokenStatus> {
        Some(self.agent.try_status()?.tokens.remove(0))
    }
}

/// What is stored under a key.
fn content(key: &str) -> Vec<u8> {
    let number = key.trim_start_matches("o/").parse().unwrap();
    pattern(number, 1000)
}

fn in_time(what: &str, began: Instant) -> Result<(), String> {
    let took = began.elapsed();
    match took <= DEADLINE + CALL {
        true => Ok(()),
        false => Err(format!("{what} was answered after {took:?}")),
    }
}
