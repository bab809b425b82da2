//! Checkpoints of the log: when they are due, who signs them, and where they
//! are put out of reach. None of it holds up an operation: a token or a store
//! that is away makes a checkpoint late, and that is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::api::{AuditKey, CheckpointStatus};
use crate::audit::{
    Checkpoint, Event, Identity, Kind, Note, PublicKey, Signed, Signer, Signing, Standing,
};
use crate::config::Config;
use crate::keyring::Keyring;

use super::super::state::App;
use super::anchor::Anchorage;
use super::lineage;

/// Records after which a checkpoint is due.
const RECORDS: u64 = 1000;
/// Time after which one is due, if anything was recorded since the last; also
/// the least time between two anchored ones.
const PERIOD: Duration = Duration::from_secs(60);
/// How often it is looked whether one is due.
const TICK: Duration = Duration::from_secs(1);
/// How long after a failure the token or the anchor is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// What signing, and anchoring, may take at a stop: the supervisor waits a
/// few seconds more than `shutdown_grace`.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// The key that signs, in whichever worker its token has now.
pub(in crate::agent) struct TokenSigner {
    app: Arc<App>,
    token: String,
    label: String,
}

impl TokenSigner {
    /// The configured one.
    pub(in crate::agent) fn of(app: &Arc<App>) -> Option<Self> {
        let (token, label) = app.audit_key.clone()?;
        Some(Self {
            app: app.clone(),
            token,
            label,
        })
    }

    /// The key as its token shows it.
    pub(in crate::agent) async fn show(&self) -> Result<AuditKey, String> {
        let token = self.app.engine.keyring.token(&self.token);
        let token = token.ok_or_else(|| format!("token {:?} is not configured", self.token))?;
        let shown = token.signer(&self.label).await;
        let shown = shown.map_err(|error| error.to_string())?;
        Ok(AuditKey {
            token: self.token.clone(),
            label: self.label.clone(),
            public_key: data_encoding::HEXLOWER.encode(&shown.public_key),
            attributes: shown.attributes,
        })
    }
}

impl Signer for TokenSigner {
    fn sign<'a>(&'a self, text: &'a [u8]) -> Signing<'a> {
        Box::pin(async move {
            let keyring: &Keyring = &self.app.engine.keyring;
            let token = keyring
                .token(&self.token)
                .ok_or_else(|| format!("token {:?} is not configured", self.token))?;
            let made = token.sign(&self.label, text).await;
            let made = made.map_err(|error| error.to_string())?;
            let key = PublicKey::from_point(&made.signer.public_key)
                .ok_or("its public key is not one of P-256")?;
            Ok(Signed {
                signature: made.bytes,
                key,
            })
        })
    }
}

/// The task that makes checkpoints.
pub(in crate::agent) struct Checkpoints {
    app: Arc<App>,
    identity: Identity,
    signer: Option<Box<dyn Signer>>,
    anchorage: Option<Anchorage>,
    /// Records that the last checkpoint took in, of those that count.
    covered: u64,
    last: Instant,
    /// Made and not kept yet.
    pending: Option<Checkpoint>,
    /// Kept and not anchored yet.
    unanchored: Option<Note>,
    sign_after: Instant,
    anchor_after: Instant,
    /// The log is behind what was anchored.
    log_alarm: Option<String>,
    status: CheckpointStatus,
}

impl Checkpoints {
    pub(in crate::agent) fn new(app: Arc<App>, config: &Config, identity: Identity) -> Self {
        let signer = TokenSigner::of(&app).map(|signer| Box::new(signer) as Box<dyn Signer>);
        let now = Instant::now();
        Self {
            anchorage: Anchorage::new(config, app.engine.store.clone()),
            status: CheckpointStatus {
                signed: signer.is_some(),
                anchor: config.audit.anchor.is_some(),
                ..CheckpointStatus::default()
            },
            app,
            identity,
            signer,
            covered: 0,
            last: now,
            pending: None,
            unanchored: None,
            sign_after: now,
            anchor_after: now,
            log_alarm: None,
        }
    }

    /// Works until `stop`, and then makes a last one.
    pub(in crate::agent) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        if let Some(note) = self.app.audit.standing().last {
            self.status.size = note.checkpoint.tree.size;
        }
        self.publish();
        let mut looked = self.anchorage.is_none();
        let mut compared = false;
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                () = tokio::time::sleep(TICK) => {}
            }
            if !looked && Instant::now() >= self.anchor_after {
                looked = self.look_at_anchor().await;
            }
            // Before a checkpoint names the head of whatever is there.
            if !compared && !self.app.audit.standing().origin.is_empty() {
                compared = lineage::doubt(&self.app).await.is_ok();
            }
            if compared && self.pending.is_none() && self.is_due() {
                self.make().await;
            }
            if self.pending.is_some() && Instant::now() >= self.sign_after {
                self.sign().await;
            }
            if self.unanchored.is_some() && Instant::now() >= self.anchor_after {
                self.anchor().await;
            }
            self.look_for_alarms().await;
            self.publish();
        }
        // The newest takes in what an older one would have.
        self.make().await;
        if timeout(LAST_PATIENCE, self.sign()).await.is_err() {
            tracing::warn!("the last checkpoint could not be signed in time");
        }
        if timeout(LAST_PATIENCE, self.anchor()).await.is_err() {
            tracing::warn!("the last checkpoint could not be anchored in time");
        }
    }

    fn is_due(&self) -> bool {
        let new = self.app.audit.standing().eventful - self.covered;
        new >= RECORDS || (new > 0 && self.last.elapsed() >= PERIOD)
    }

    /// Records that a checkpoint is made; it covers that record too.
    async fn make(&mut self) {
        let standing = self.app.audit.standing();
        let mut event = Event::new(Kind::Checkpoint);
        event.last = standing.last.map(|note| note.checkpoint.tree);
        event.anchored = self.status.anchored;
        // While the log cannot be written there is nothing new to check.
        let Ok(tree) = self.app.audit.write(event).await else {
            return;
        };
        self.covered = standing.eventful;
        self.last = Instant::now();
        let Identity { host, boot_id } = &self.identity;
        let mut extensions = vec![
            format!("time {:.0}", Timestamp::now()),
            format!("host {host}"),
            format!("boot {boot_id}"),
        ];
        match lineage::line(&self.app).await {
            Ok(line) => extensions.push(line),
            Err(error) => {
                tracing::warn!(%error, "a checkpoint is made without the catalogue's head")
            }
        }
        self.pending = Some(Checkpoint {
            origin: self.app.audit.standing().origin,
            tree,
            extensions,
        });
    }

    async fn look_for_alarms(&mut self) {
        let catalogue = self.app.engine.catalog.doubt().await;
        let alarms = [self.log_alarm.clone(), catalogue.ok().flatten()];
        let alarms: Vec<String> = alarms.into_iter().flatten().collect();
        self.status.alarm = (!alarms.is_empty()).then(|| alarms.join("; "));
    }

    async fn sign(&mut self) {
        let Some(checkpoint) = self.pending.take() else {
            return;
        };
        let note = match &self.signer {
            None => Ok(Note::unsigned(checkpoint.clone())),
            Some(signer) => signer
                .sign(checkpoint.text().as_bytes())
                .await
                .map(|signed| Note::signed(checkpoint.clone(), &signed)),
        };
        let kept = match note {
            Ok(note) => self.app.audit.keep(note.clone()).await.map(|()| note),
            Err(why) => Err(why),
        };
        match kept {
            Ok(note) => {
                self.status.size = checkpoint.tree.size;
                self.status.problem = None;
                self.unanchored = Some(note).filter(|_| self.anchorage.is_some());
            }
            Err(why) => {
                if self.status.problem.is_none() {
                    tracing::error!(
                        why,
                        "a checkpoint of the audit log is due and cannot be made"
                    );
                }
                self.status.problem = Some(why);
                self.sign_after = Instant::now() + RETRY;
                self.pending = Some(checkpoint);
            }
        }
    }

    async fn anchor(&mut self) {
        let (Some(anchorage), Some(note)) = (&self.anchorage, &self.unanchored) else {
            return;
        };
        match anchorage.put(note).await {
            Ok(()) => {
                self.status.anchored = Some(note.checkpoint.tree.size);
                self.status.anchor_problem = None;
                self.unanchored = None;
                self.anchor_after = Instant::now() + PERIOD;
            }
            Err(why) => {
                if self.status.anchor_problem.is_none() {
                    tracing::error!(why, "a checkpoint of the audit log cannot be anchored");
                }
                self.status.anchor_problem = Some(why);
                self.anchor_after = Instant::now() + RETRY;
            }
        }
    }

    /// What of this log was anchored before; false if it cannot be seen now.
    async fn look_at_anchor(&mut self) -> bool {
        let standing = self.app.audit.standing();
        let (Some(anchorage), false) = (&self.anchorage, standing.origin.is_empty()) else {
            return false;
        };
        match anchorage.newest(&standing.origin).await {
            Ok(newest) => {
                let mut event = Event::new(Kind::Anchor);
                event.anchored = newest;
                if newest.is_some_and(|size| size > standing.tree.size) {
                    let why = "more records were anchored than this log has: it was cut, or put back from a copy";
                    tracing::error!(anchored = newest, records = standing.tree.size, why);
                    self.log_alarm = Some(why.to_owned());
                    event.detail = Some(why.to_owned());
                }
                self.status.anchored = newest;
                if let Err(why) = self.compare_anchored(newest).await {
                    self.status.anchor_problem = Some(why);
                    self.anchor_after = Instant::now() + RETRY;
                    return false;
                }
                self.app.audit.send(event);
                true
            }
            Err(why) => {
                self.status.anchor_problem = Some(why);
                self.anchor_after = Instant::now() + RETRY;
                false
            }
        }
    }

    /// Holds the catalogue against the newest anchored checkpoint, which may
    /// know more than a log that was put back together with it.
    async fn compare_anchored(&self, newest: Option<u64>) -> Result<(), String> {
        let (Some(anchorage), Some(size)) = (&self.anchorage, newest) else {
            return Ok(());
        };
        let origin = self.app.audit.standing().origin;
        let note = anchorage.read(&origin, size).await?;
        if let Some(signer) = TokenSigner::of(&self.app) {
            let key = signer.show().await?.public_key;
            let key = data_encoding::HEXLOWER.decode(key.as_bytes()).ok();
            let key = key.and_then(|point| PublicKey::from_point(&point));
            if key.is_none_or(|key| note.check(&key) != Standing::Proven) {
                tracing::error!(
                    size,
                    "the newest anchored checkpoint is not signed by our key"
                );
                return Ok(());
            }
        }
        let compared = lineage::against(&self.app, &note.checkpoint).await;
        compared.map(|_| ()).map_err(|error| error.to_string())
    }

    fn publish(&self) {
        let mut shown = self
            .app
            .checkpoints
            .lock()
            .unwrap_or_else(|e| e.into_inner());
        shown.clone_from(&self.status);
    }
}
