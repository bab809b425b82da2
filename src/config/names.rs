//! Names of users and groups become numbers where the configuration is
//! loaded: the server that judges by them cannot open /etc/passwd, and a name
//! that somebody takes over later must not take over a grant.

use super::grants::check_id;
use super::units::nearest;
use super::{Config, ConfigError, Who};

impl Config {
    /// The uid or gid that each grant is for, in the order of
    /// [`Config::grants`].
    ///
    /// # Errors
    /// There is no such user or group on this host.
    pub fn principals(&self) -> Result<Vec<u32>, ConfigError> {
        self.grants
            .iter()
            .map(|grant| {
                resolve(&grant.who)
                    .and_then(|id| check_id(&grant.who, Some(id)).map(|()| id))
                    .map_err(|(message, hint)| {
                        let message = format!("the grant of line {}: {message}", grant.line);
                        ConfigError::new(&self.path, message, hint)
                    })
            })
            .collect()
    }
}

fn resolve(who: &Who) -> Result<u32, (String, String)> {
    let (found, name, file, kind) = match who {
        Who::Uid(id) | Who::Gid(id) => return Ok(*id),
        Who::User(name) => {
            let user = uzers::get_user_by_name(name);
            (user.map(|u| u.uid()), name, "/etc/passwd", "user")
        }
        Who::Group(name) => {
            let group = uzers::get_group_by_name(name);
            (group.map(|g| g.gid()), name, "/etc/group", "group")
        }
    };
    found.ok_or_else(|| {
        // Only for the hint: the system may know others by other means.
        let known = std::fs::read_to_string(file).unwrap_or_default();
        let names = known.lines().filter_map(|line| line.split(':').next());
        (
            format!("there is no {kind} {name:?} on this host"),
            nearest(name, names)
                .unwrap_or_else(|| format!("create the {kind}, or correct the name")),
        )
    })
}
