//! The catalogue as the token layer sees it.

use crate::catalog::{CanaryRow, Catalog, WrapsRow};
use crate::token::{Canary, CanaryStore, Reserved, WrapLedger};

/// Canaries and counts of wraps, kept in the catalogue.
pub(super) struct Records(pub(super) Catalog);

impl CanaryStore for Records {
    fn load(&self, key: &str) -> Result<Option<Canary>, String> {
        let row = self.0.load_canary(key).map_err(|e| e.to_string())?;
        Ok(row.map(|row| Canary {
            iv: row.iv,
            ciphertext: row.ciphertext,
            digest: row.digest,
        }))
    }

    fn save(&self, key: &str, canary: &Canary) -> Result<(), String> {
        let row = CanaryRow {
            iv: canary.iv,
            ciphertext: canary.ciphertext.clone(),
            digest: canary.digest,
        };
        match self.0.save_canary(key, &row) {
            Ok(true) => Ok(()),
            Ok(false) => Err("the key has a canary already".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl WrapLedger for Records {
    fn load(&self, key: &str) -> Result<Reserved, String> {
        let row = self.0.load_wraps(key).map_err(|e| e.to_string())?;
        Ok(reserved(row))
    }

    fn reserve(&self, key: &str, wraps: u64) -> Result<Reserved, String> {
        let row = self.0.reserve_wraps(key, wraps);
        Ok(reserved(row.map_err(|e| e.to_string())?))
    }
}

fn reserved(row: WrapsRow) -> Reserved {
    Reserved {
        total: row.reserved,
        complete: row.complete,
    }
}
