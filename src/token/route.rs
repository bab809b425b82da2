//! Whether a token can be asked at all, for those who have a choice.

use super::handle::Token;

impl Token {
    /// Whether a call with this key would go to its worker at once.
    #[must_use]
    pub fn is_open(&self, key: &str) -> bool {
        matches!(self.inner.state.borrow().route(key), Some(Ok(_)))
    }

    /// Whether nothing can be done with this key before somebody acts.
    #[must_use]
    pub fn refuses(&self, key: &str) -> bool {
        matches!(self.inner.state.borrow().route(key), Some(Err(_)))
    }
}
