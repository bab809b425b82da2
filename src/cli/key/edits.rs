//! What a key's life changes in the configuration's text: comments and order
//! stay.

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, Value, value};

/// A ring's new key.
pub(super) struct Successor<'a> {
    /// The key that wraps now.
    pub(super) old: &'a str,
    /// The new key's name and label.
    pub(super) name: &'a str,
    /// Its token.
    pub(super) token: &'a str,
    /// Their ring.
    pub(super) ring: &'a str,
    /// Whether it wraps from now on, or only opens as yet.
    pub(super) active: bool,
}

/// Enters a new key, which takes the place of the old one if it is to wrap.
/// How long and how often a key may be used is the ring's habit.
pub(super) fn rotated(text: &str, change: &Successor<'_>) -> Result<String, String> {
    let mut document = parsed(text)?;
    let keys = keys(&mut document)?;
    let old = find(keys, change.old)?;
    let kept: Vec<(&str, Item)> = ["cryptoperiod", "wrap_limit"]
        .into_iter()
        .filter_map(|name| Some((name, plain(old.get(name)?))))
        .collect();
    if change.active {
        set_use(old, "decrypt", None);
    }
    let mut table = Table::new();
    table.decor_mut().set_prefix("\n");
    for (name, text) in [
        ("name", change.name),
        ("token", change.token),
        ("label", change.name),
        ("ring", change.ring),
    ] {
        table.insert(name, value(text));
    }
    let usage = if change.active { "active" } else { "decrypt" };
    table.insert("use", value(usage));
    for (name, item) in kept {
        table.insert(name, item);
    }
    keys.push(table);
    Ok(document.to_string())
}

/// Makes a key that is configured already wrap in the place of another.
pub(super) fn activated(text: &str, old: &str, new: &str) -> Result<String, String> {
    let mut document = parsed(text)?;
    let keys = keys(&mut document)?;
    set_use(find(keys, old)?, "decrypt", None);
    set_use(find(keys, new)?, "active", None);
    Ok(document.to_string())
}

/// Disables a key; no other key may wait for it as its successor.
pub(super) fn disabled(text: &str, name: &str, comment: &str) -> Result<String, String> {
    let mut document = parsed(text)?;
    let keys = keys(&mut document)?;
    for table in keys.iter_mut() {
        if table.get("successor").and_then(Item::as_str) == Some(name) {
            table.remove("successor");
        }
    }
    set_use(find(keys, name)?, "disabled", Some(comment));
    Ok(document.to_string())
}

fn parsed(text: &str) -> Result<DocumentMut, String> {
    text.parse()
        .map_err(|error: toml_edit::TomlError| error.to_string())
}

fn keys(document: &mut DocumentMut) -> Result<&mut ArrayOfTables, String> {
    document
        .get_mut("key")
        .and_then(Item::as_array_of_tables_mut)
        .ok_or_else(|| "its keys are not written as [[key]] tables".to_owned())
}

fn find<'a>(keys: &'a mut ArrayOfTables, name: &str) -> Result<&'a mut Table, String> {
    keys.iter_mut()
        .find(|table| table.get("name").and_then(Item::as_str) == Some(name))
        .ok_or_else(|| format!("it has no [[key]] named {name:?}"))
}

/// A value without the comments around it.
fn plain(item: &Item) -> Item {
    let mut item = item.clone();
    if let Some(value) = item.as_value_mut() {
        value.decor_mut().clear();
    }
    item
}

/// Sets `use`, keeping its comment unless there is a new one.
fn set_use(table: &mut Table, usage: &str, comment: Option<&str>) {
    let mut new = Value::from(usage);
    let old = table.get("use").and_then(Item::as_value);
    match (comment, old) {
        (Some(comment), _) => {
            *new.decor_mut() = toml_edit::Decor::new(" ", format!(" # {comment}"))
        }
        (None, Some(old)) => *new.decor_mut() = old.decor().clone(),
        (None, None) => {}
    }
    match table.get_mut("use").and_then(Item::as_value_mut) {
        Some(value) => *value = new,
        None => {
            table.insert("use", Item::Value(new));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    const TEXT: &str = "# ours\n[[token]]\nname = 't'\nmodule = '/m.so'\ntoken_label = 't'\npin_file = '/pin'\n\n[[key]] # the first\nname = 'old'\ntoken = 't'\nlabel = 'old'\nring = 'r'\nuse = 'active' # since 2024\ncryptoperiod = '1y' # policy\n\n[s3]\nregion = 'x' # there\n";

    fn change(active: bool) -> Successor<'static> {
        Successor {
            old: "old",
            name: "new",
            token: "t",
            ring: "r",
            active,
        }
    }

    #[test]
    fn a_rotation_is_one_change_and_every_comment_stays() {
        let text = rotated(TEXT, &change(true)).unwrap();
        for comment in [
            "# ours",
            "# the first",
            "# since 2024",
            "# policy",
            "# there",
        ] {
            assert!(text.contains(comment), "{comment}: {text}");
        }
        let config = Config::parse(&text, Path::new("x")).unwrap();
        let of = |name: &str| config.keys.iter().find(|key| key.name == name).unwrap();
        assert!(!of("old").is_active() && of("old").opens());
        assert!(of("new").is_active());
        assert_eq!(of("new").ring(), "r");
        assert_eq!(of("new").cryptoperiod, of("old").cryptoperiod);
    }

    #[test]
    fn a_fleet_stages_first_and_activates_later() {
        let staged = rotated(TEXT, &change(false)).unwrap();
        let config = Config::parse(&staged, Path::new("x")).unwrap();
        assert!(config.keys[0].is_active() && !config.keys[1].is_active());
        let text = activated(&staged, "old", "new").unwrap();
        let config = Config::parse(&text, Path::new("x")).unwrap();
        assert!(!config.keys[0].is_active() && config.keys[1].is_active());
        assert!(text.contains("# since 2024"));
    }

    #[test]
    fn a_disabled_key_says_when_and_is_nobodys_successor() {
        let heir = TEXT.replace("ring = 'r'", "ring = 'r'\nsuccessor = 'new'");
        let text = rotated(&heir, &change(false)).unwrap();
        let text = disabled(&text, "new", "retired 2026-01-01").unwrap();
        assert!(
            text.contains("use = \"disabled\" # retired 2026-01-01"),
            "{text}"
        );
        Config::parse(&text, Path::new("x")).unwrap();
        assert!(disabled(&text, "nobody", "").is_err());
    }
}
