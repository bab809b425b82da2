//! How far the wrapping keys' counts and cryptoperiods have come, and the
//! doctor's own part in the counts: the start-up gate wraps once for each key it looks at.

use crate::catalog::{Catalog, CatalogError, WrapsRow};
use crate::config::{Config, Key};
use crate::keyring::Period;
use crate::token::{KeySpec, PROOF_COST, WrapCount};

use super::Finding;

/// The counts, where an agent has been started before.
pub(super) struct Wraps(Option<Catalog>);

impl Wraps {
    pub(super) fn open(config: &Config) -> Result<Self, Finding> {
        let catalog = Catalog::open_existing(&config.agent.state_dir);
        catalog.map(Self).map_err(|error| fault(&error))
    }

    /// Counts the wraps of one look at these keys, before it is taken.
    pub(super) fn charge(&self, keys: &[KeySpec]) -> Result<(), Finding> {
        let Some(catalog) = &self.0 else {
            // The count begins with some to spare for this.
            return Ok(());
        };
        for key in keys {
            catalog
                .reserve_wraps(&key.name, u64::from(PROOF_COST))
                .map_err(|error| fault(&error))?;
        }
        Ok(())
    }

    /// What is to be said of each key's count.
    pub(super) fn findings(&self, config: &Config) -> Vec<Finding> {
        let Some(catalog) = &self.0 else {
            return Vec::new();
        };
        let doubt = match catalog.load_doubt() {
            Ok(doubt) => doubt.map(|why| {
                Finding::fault(
                    "catalogue",
                    why,
                    "find out who put it back; `strongroom catalog accept` when it is right (docs/catalog.md)",
                )
            }),
            Err(error) => Some(fault(&error)),
        };
        let keys = config.keys.iter().filter(|key| key.opens());
        let counts = keys.flat_map(|key| {
            let count = match catalog.load_wraps(&key.name) {
                Ok(row) => judge(key, row),
                Err(error) => fault(&error),
            };
            [Some(count), overdue(key, catalog)]
        });
        doubt.into_iter().chain(counts.flatten()).collect()
    }
}

fn judge(key: &Key, row: WrapsRow) -> Finding {
    let area = format!("key {}", key.name);
    let limit = key.wrap_limit.wraps();
    let count = WrapCount::new(row.reserved, limit, row.complete);
    let used = format!("{} of {limit} wraps are used", count.used);
    let rotate = "rotate: docs/keys.md tells how";
    if !key.is_active() {
        return Finding::fine(area, used);
    }
    match &key.successor {
        _ if !count.complete => Finding::fault(
            area,
            format!("the count of its wraps is incomplete: {used} at the least"),
            rotate,
        ),
        Some(next) if count.is_due() => Finding::fine(
            area,
            format!("{used}; its successor {next} wraps in its place"),
        ),
        Some(next) if count.is_low() => Finding::fine(
            area,
            format!("{used}; its successor {next} takes over soon"),
        ),
        None if count.is_exhausted() => {
            Finding::fault(area, format!("{used}: nothing more is wrapped"), rotate)
        }
        None if count.is_low() => Finding::fault(
            area,
            format!("{used}, and it has no successor"),
            "name a `successor`, or rotate: docs/keys.md tells how",
        ),
        _ => Finding::fine(area, used),
    }
}

/// A cryptoperiod that ends soon, or has ended.
fn overdue(key: &Key, catalog: &Catalog) -> Option<Finding> {
    let period = key.cryptoperiod.filter(|_| key.is_active())?;
    let first_use = catalog.first_use(&key.name).ok().flatten()?;
    let warning = Period::new(first_use, period.duration()).warning()?;
    Some(Finding::fault(
        format!("key {}", key.name),
        warning,
        format!("`strongroom key rotate {}`", key.ring()),
    ))
}

fn fault(error: &CatalogError) -> Finding {
    Finding::fault("catalogue", error.to_string(), error.hint())
}
