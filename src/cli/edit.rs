//! Changing the configuration's file: comments and order stay, the change is
//! checked before it is made, made at once or not at all, and can be undone.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, Value, value};

use super::failure::{CONFIG, Failure};
use crate::config::Config;

/// A `[[key]]` to be entered.
pub(super) struct NewKey<'a> {
    pub(super) name: &'a str,
    pub(super) token: &'a str,
    pub(super) label: &'a str,
    pub(super) ring: Option<&'a str>,
    /// Not a wrapping key, but the one that signs checkpoints.
    pub(super) audit: bool,
    /// Not generated in its token; it may be on several.
    pub(super) imported: bool,
}

/// A change of the configuration, checked and not yet made.
#[derive(Debug)]
pub(super) struct Change {
    path: PathBuf,
    before: String,
    after: String,
}

impl Change {
    /// Enters a key into a copy of the configuration, and checks the copy.
    pub(super) fn prepare(path: &Path, key: &NewKey<'_>) -> Result<Self, Failure> {
        Self::prepare_with(path, |text| match key.audit {
            true => with_audit_key(text, key),
            false => with_key(text, key),
        })
    }

    /// Makes any change in a copy of the configuration, and checks the copy.
    pub(super) fn prepare_with(
        path: &Path,
        edit: impl FnOnce(&str) -> Result<String, String>,
    ) -> Result<Self, Failure> {
        let cannot =
            |error: &io::Error| Failure::io(format!("cannot read {}", path.display()), error);
        // Through a symbolic link: what it names is changed, not the link.
        let real = std::fs::canonicalize(path).map_err(|error| cannot(&error))?;
        let before = std::fs::read_to_string(&real).map_err(|error| cannot(&error))?;
        let after = edit(&before).map_err(|why| {
            Failure::new(CONFIG, format!("cannot edit {}: {why}", path.display()))
        })?;
        Config::parse(&after, path)
            .map_err(|error| Failure::from(error).and("; nothing was changed"))?;
        Ok(Self {
            path: real,
            before,
            after,
        })
    }

    /// Writes the changed configuration, unless someone changed it meanwhile.
    pub(super) fn apply(&self) -> Result<(), Failure> {
        self.write(&self.before, &self.after)
    }

    /// Writes the former configuration again.
    pub(super) fn undo(&self) -> Result<(), Failure> {
        self.write(&self.after, &self.before)
    }

    fn write(&self, expected: &str, text: &str) -> Result<(), Failure> {
        let cannot =
            |error: &io::Error| Failure::io(format!("cannot write {}", self.path.display()), error);
        let now = std::fs::read_to_string(&self.path).map_err(|error| cannot(&error))?;
        if now != expected {
            return Err(Failure::new(
                CONFIG,
                format!(
                    "cannot write {}: someone else changed it meanwhile",
                    self.path.display()
                ),
            )
            .hint("make the change by hand, and reload the agent"));
        }
        replace(&self.path, text).map_err(|error| cannot(&error))
    }
}

/// Adds a `[[key]]` behind the others.
fn with_key(text: &str, key: &NewKey<'_>) -> Result<String, String> {
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| error.to_string())?;
    let mut table = Table::new();
    table.decor_mut().set_prefix("\n");
    let fields = [
        ("name", Some(key.name)),
        ("token", Some(key.token)),
        ("label", Some(key.label)),
        ("ring", key.ring),
        ("use", Some("active")),
    ];
    for (name, text) in fields {
        if let Some(text) = text {
            table.insert(name, value(text));
        }
    }
    if key.imported {
        table.insert("imported", value(true));
    }
    let keys = document
        .entry("key")
        .or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    let Some(keys) = keys.as_array_of_tables_mut() else {
        return Err("its keys are not written as [[key]] tables".into());
    };
    let same = keys.iter_mut().find(|other| {
        let is = |field: &str, text: &str| other.get(field).and_then(Item::as_str) == Some(text);
        let imported = other.get("imported").and_then(Item::as_bool);
        is("name", key.name) && is("label", key.label) && imported == Some(true)
    });
    match same {
        // The same key on a further token.
        Some(other) if key.imported => add_token(other, key.token)?,
        _ => keys.push(table),
    }
    Ok(document.to_string())
}

/// Names one more token of a key that is on several.
fn add_token(key: &mut Table, token: &str) -> Result<(), String> {
    let mut tokens = match key.get("token").and_then(Item::as_value) {
        Some(Value::String(one)) => Array::from_iter([one.value().as_str()]),
        Some(Value::Array(several)) => several.clone(),
        _ => return Err("its token is not written as a name or a list of names".into()),
    };
    if tokens.iter().any(|other| other.as_str() == Some(token)) {
        return Err(format!("the key is already on token {token:?}"));
    }
    tokens.push(token);
    key.insert("token", value(tokens));
    Ok(())
}

/// Sets what `[audit]` says of the key that signs checkpoints.
fn with_audit_key(text: &str, key: &NewKey<'_>) -> Result<String, String> {
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| error.to_string())?;
    let audit = document.entry("audit").or_insert(toml_edit::table());
    let Some(audit) = audit.as_table_like_mut() else {
        return Err("its [audit] is not written as a table".into());
    };
    audit.insert("checkpoint_key", value(key.label));
    audit.insert("checkpoint_token", value(key.token));
    Ok(document.to_string())
}

/// Replaces a file's content by renaming a new file over it, with the same
/// mode and owner: the agent sees the old one or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let meta = std::fs::metadata(path)?;
    let mut file = tempfile::Builder::new()
        .prefix(".strongroom.toml.")
        .tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    let new = file.as_file().metadata()?;
    if (new.uid(), new.gid()) != (meta.uid(), meta.gid()) {
        fchown(file.as_file(), Some(meta.uid()), Some(meta.gid()))?;
    }
    // After the owner, whose change clears bits of the mode.
    file.as_file().set_permissions(meta.permissions())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const CONFIGURATION: &str = "# our HSM\n[[token]] # the only one\nname = \"primary\"\nmodule = \"/m.so\"\ntoken_label = \"t\"\npin_file = \"/pin\"\n\n[[key]]\nname = 'old' # since 2024\ntoken = 'primary'\nlabel = 'old'\n\n[s3]\nregion = \"eu-central-1\"\n# the end\n";

    const KEY: NewKey<'static> = NewKey {
        name: "archive-2026",
        token: "primary",
        label: "archive-2026",
        ring: None,
        audit: false,
        imported: false,
    };

    #[test]
    fn an_audit_key_is_named_and_every_other_setting_stays() {
        let audit = NewKey {
            audit: true,
            label: "audit-2026",
            ..KEY
        };
        let with = format!("{CONFIGURATION}\n[audit]\nrotate = \"1 MiB\" # small\n");
        for text in [CONFIGURATION, &with] {
            let text = with_audit_key(text, &audit).unwrap();
            let config = Config::parse(&text, Path::new("x")).unwrap();
            assert_eq!(config.audit.checkpoint_key.as_deref(), Some("audit-2026"));
            assert_eq!(config.checkpoint_token().unwrap().name, "primary");
        }
        assert!(with_audit_key(&with, &audit).unwrap().contains("# small"));
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("strongroom.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn a_key_is_added_and_every_other_byte_stays() {
        let text = with_key(CONFIGURATION, &KEY).unwrap();
        let added = "\n[[key]]\nname = \"archive-2026\"\ntoken = \"primary\"\nlabel = \"archive-2026\"\nuse = \"active\"\n";
        assert!(text.contains(added), "{text}");
        assert_eq!(text.replacen(added, "", 1), CONFIGURATION);
        let config = Config::parse(&text, Path::new("x")).unwrap();
        assert_eq!(config.keys.len(), 2);
    }

    #[test]
    fn an_imported_key_says_so_and_a_second_token_joins_the_first() {
        let key = |token| NewKey {
            imported: true,
            token,
            ..KEY
        };
        let first = with_key(CONFIGURATION, &key("primary")).unwrap();
        assert!(
            first.contains("use = \"active\"\nimported = true\n"),
            "{first}"
        );
        let both = with_key(&first, &key("standby")).unwrap();
        assert!(
            both.contains("token = [\"primary\", \"standby\"]"),
            "{both}"
        );
        assert_eq!(
            both.matches("archive-2026").count(),
            first.matches("archive-2026").count()
        );
        let again = with_key(&both, &key("standby")).unwrap_err();
        assert!(again.contains("already"), "{again}");
        // A key that was generated is no other's double.
        let other = with_key(&first, &KEY).unwrap();
        assert!(Config::parse(&other, Path::new("x")).is_err());
    }

    #[test]
    fn the_first_key_is_added_too() {
        let token = CONFIGURATION.split("[[key]]").next().unwrap();
        let ring = NewKey {
            ring: Some("archive"),
            ..KEY
        };
        let config = Config::parse(&with_key(token, &ring).unwrap(), Path::new("x")).unwrap();
        assert_eq!(config.keys[0].ring(), "archive");
    }

    #[test]
    fn a_change_keeps_the_mode_and_can_be_undone() {
        let (_dir, path) = file(CONFIGURATION);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let change = Change::prepare(&path, &KEY).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), CONFIGURATION);
        change.apply().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("archive-2026"));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        change.undo().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), CONFIGURATION);
    }

    #[test]
    fn what_would_not_load_is_refused_before_a_key_is_made() {
        let (_dir, path) = file(CONFIGURATION);
        let refused = |key: &NewKey<'_>| Change::prepare(&path, key).unwrap_err();
        let twice = NewKey { name: "old", ..KEY };
        assert!(refused(&twice).text().contains("two [[key]]"));
        let ring = NewKey {
            ring: Some("old"),
            ..KEY
        };
        assert_eq!(refused(&ring).code(), CONFIG);
        assert!(refused(&ring).text().contains("active"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), CONFIGURATION);
    }

    #[test]
    fn someone_elses_change_is_not_overwritten() {
        let (_dir, path) = file(CONFIGURATION);
        let change = Change::prepare(&path, &KEY).unwrap();
        std::fs::write(&path, "# mine\n").unwrap();
        assert!(change.apply().unwrap_err().text().contains("meanwhile"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "# mine\n");
    }
}
