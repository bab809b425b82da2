//! A wrapping key in parts: components of separate custodians, whose XOR is
//! the key. Any of them missing, the others say nothing about it.
//!
//! Knows no terminal, file or token. A component is written as hexadecimal
//! digits, and told from another by its check value: the first three bytes of
//! AES-ECB of a zero block under it, which is also what tokens report of a key
//! (CKA_CHECK_VALUE, PKCS#11 2.40, 4.10.2). Here, on an offline machine that
//! holds the bytes anyway, it is computed; a wrapping key in a token is never
//! made to do AES-ECB (SECURITY.md 18).

use std::fmt;
use std::str::FromStr;

use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use zeroize::{Zeroizing, zeroize_stack};

use crate::secret::Secret32;

/// Bytes of a component, and of the key: AES-256.
const LEN: usize = 32;
/// Fewest components: with one there would be no separation of custodians.
pub const LEAST: usize = 2;
/// Most components: every subset is looked at, and a ceremony of more people
/// has other problems.
pub const MOST: usize = 8;
/// Stack that a check value's key schedule may use, in bytes, overwritten
/// afterwards: 240 bytes twice over, unoptimised builds with copies.
const CHECK_STACK: usize = 8 * 1024;
/// Hexadecimal digits in one written group.
const GROUP: usize = 4;

/// One custodian's part of a key. Neither `Clone` nor `Debug`.
pub struct Component(Secret32);

/// Three bytes that tell one key from another, and say nothing more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckValue(pub [u8; 3]);

/// Why components make no key. Names custodians by their place, from 1; never
/// says what they gave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not 64 hexadecimal digits.
    #[error("a component is 64 hexadecimal digits; spaces and dashes between them do not count")]
    Malformed,
    /// Too few, or too many.
    #[error("a key has from {LEAST} to {MOST} components, not {0}")]
    Count(usize),
    /// A component that changes nothing.
    #[error("component {0} is zero")]
    Zero(usize),
    /// The same component twice, which cancels itself.
    #[error("components {0} and {1} are the same")]
    Duplicate(usize, usize),
    /// Some components add up to nothing: the others alone are the key.
    #[error("components {} cancel each other out", list(.0))]
    Cancelling(Vec<usize>),
    /// The kernel has no random bytes.
    #[error("no random bytes: {0}")]
    Random(String),
}

impl Component {
    /// A new one, from the operating system's generator.
    ///
    /// # Errors
    /// [`Refused::Random`].
    pub fn random() -> Result<Self, Refused> {
        let secret = Secret32::random().map_err(|error| Refused::Random(error.to_string()))?;
        Ok(Self(secret))
    }

    /// From hexadecimal digits, in either case, grouped or not.
    ///
    /// # Errors
    /// [`Refused::Malformed`].
    pub fn parse(text: &str) -> Result<Self, Refused> {
        Secret32::fill_with(|out| {
            let mut digits = text.bytes().filter(|b| !matches!(b, b' ' | b'-'));
            for byte in out {
                let (high, low) = (hex(digits.next())?, hex(digits.next())?);
                *byte = high << 4 | low;
            }
            digits.next().is_none().then_some(()).ok_or(())
        })
        .map(Self)
        .map_err(|()| Refused::Malformed)
    }

    /// Groups of four hexadecimal digits.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        // At its final size: growing would leave a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(LEN * 2 + LEN * 2 / GROUP));
        for (n, byte) in self.0.expose().iter().enumerate() {
            if n > 0 && n % (GROUP / 2) == 0 {
                text.push(' ');
            }
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
        text
    }

    /// Its check value.
    #[must_use]
    pub fn check_value(&self) -> CheckValue {
        check_value(&self.0)
    }
}

/// New components, which [`combine`] takes.
///
/// # Errors
/// [`Refused::Count`] or [`Refused::Random`].
pub fn generate(count: usize) -> Result<Vec<Component>, Refused> {
    if !(LEAST..=MOST).contains(&count) {
        return Err(Refused::Count(count));
    }
    (0..count).map(|_| Component::random()).collect()
}

/// The key that the components are parts of.
///
/// # Errors
/// Components that add nothing to its secrecy: zero, given twice, or some that
/// cancel each other out; and a number of them that is no ceremony's.
pub fn combine(components: &[Component]) -> Result<Secret32, Refused> {
    if !(LEAST..=MOST).contains(&components.len()) {
        return Err(Refused::Count(components.len()));
    }
    // Every subset, the whole among them: at most 255 of them.
    for mask in 1_u32..1 << components.len() {
        let members: Vec<usize> = (0..components.len())
            .filter(|n| mask >> n & 1 == 1)
            .collect();
        let sum = sum(members.iter().map(|n| &components[*n]));
        if sum.expose().iter().fold(0, |all, byte| all | byte) != 0 {
            continue;
        }
        let places: Vec<usize> = members.iter().map(|n| n + 1).collect();
        return Err(match places[..] {
            [one] => Refused::Zero(one),
            [one, two] => Refused::Duplicate(one, two),
            _ => Refused::Cancelling(places),
        });
    }
    Ok(sum(components.iter()))
}

/// A key's check value, computed: for keys whose bytes are at hand.
#[must_use]
pub fn check_value(key: &Secret32) -> CheckValue {
    let value = on_stack(key);
    zeroize_stack::<CHECK_STACK>();
    value
}

/// Never inlined, so that the stack it used lies below its caller's when that
/// is overwritten.
#[inline(never)]
fn on_stack(key: &Secret32) -> CheckValue {
    let mut block = [0; 16].into();
    Aes256::new(key.expose().into()).encrypt_block(&mut block);
    CheckValue([block[0], block[1], block[2]])
}

fn sum<'a>(components: impl Iterator<Item = &'a Component>) -> Secret32 {
    let sum = Secret32::fill_with(|out| {
        for component in components {
            for (byte, other) in out.iter_mut().zip(component.0.expose()) {
                *byte ^= other;
            }
        }
        Ok::<(), std::convert::Infallible>(())
    });
    match sum {
        Ok(sum) => sum,
        Err(never) => match never {},
    }
}

fn hex(digit: Option<u8>) -> Result<u8, ()> {
    match digit {
        Some(digit @ b'0'..=b'9') => Ok(digit - b'0'),
        Some(digit @ b'a'..=b'f') => Ok(digit - b'a' + 10),
        Some(digit @ b'A'..=b'F') => Ok(digit - b'A' + 10),
        _ => Err(()),
    }
}

fn list(places: &[usize]) -> String {
    let places: Vec<String> = places.iter().map(ToString::to_string).collect();
    places.join(", ")
}

impl fmt::Display for CheckValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.0;
        write!(f, "{a:02X}{b:02X}{c:02X}")
    }
}

impl FromStr for CheckValue {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a check value is six hexadecimal digits";
        let mut digits = text.bytes().filter(|b| !matches!(b, b' ' | b'-'));
        let mut value = [0; 3];
        for byte in &mut value {
            let high = hex(digits.next()).map_err(|()| FORM)?;
            let low = hex(digits.next()).map_err(|()| FORM)?;
            *byte = high << 4 | low;
        }
        match digits.next() {
            None => Ok(Self(value)),
            Some(_) => Err(FORM),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn filled(byte: u8) -> Component {
        Component(Secret32::from_slice(&[byte; LEN]).unwrap())
    }

    #[test]
    fn a_component_is_read_as_it_was_written() {
        let one = Component::random().unwrap();
        let text = one.text();
        assert_eq!(text.len(), 64 + 15);
        for form in [
            text.to_string(),
            text.to_lowercase(),
            text.replace(' ', "-"),
            text.replace(' ', ""),
        ] {
            let read = Component::parse(&form).unwrap();
            assert_eq!(read.0.expose(), one.0.expose());
        }
        for bad in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64)] {
            assert_eq!(Component::parse(bad).err(), Some(Refused::Malformed));
        }
    }

    /// AES-256 of a zero block under a zero key: the GCM specification's
    /// (McGrew and Viega) test case 13 has it as H.
    #[test]
    fn a_check_value_is_what_tokens_report() {
        let zero = Secret32::from_slice(&[0; LEN]).unwrap();
        assert_eq!(check_value(&zero), CheckValue([0xdc, 0x95, 0xc0]));
        assert_eq!(check_value(&zero).to_string(), "DC95C0");
        assert_eq!("dc 95 c0".parse(), Ok(check_value(&zero)));
        for bad in ["", "dc95", "dc95c0a", "dc95cg"] {
            assert!(bad.parse::<CheckValue>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rule_23_components_that_add_nothing_are_refused() {
        let refused = |bytes: &[u8]| {
            let components: Vec<Component> = bytes.iter().map(|b| filled(*b)).collect();
            combine(&components).err()
        };
        assert_eq!(refused(&[1, 0, 2]), Some(Refused::Zero(2)));
        assert_eq!(refused(&[1, 2, 1]), Some(Refused::Duplicate(1, 3)));
        // Two that are the same cancel whatever the third is; three can too.
        assert_eq!(
            refused(&[1, 2, 3]),
            Some(Refused::Cancelling(vec![1, 2, 3]))
        );
        assert_eq!(
            refused(&[7, 1, 2, 3]),
            Some(Refused::Cancelling(vec![2, 3, 4]))
        );
        assert_eq!(
            refused(&[1, 2, 4, 7, 9]),
            Some(Refused::Cancelling(vec![1, 2, 3, 4]))
        );
        assert_eq!(refused(&[1]), Some(Refused::Count(1)));
        assert_eq!(refused(&[1; 9]), Some(Refused::Count(9)));
        assert_eq!(refused(&[1, 2, 4, 8, 16, 32, 64, 128]), None);
    }

    #[test]
    fn the_key_is_the_sum_in_any_order() {
        let key = |bytes: &[u8]| {
            let components: Vec<Component> = bytes.iter().map(|b| filled(*b)).collect();
            *combine(&components).unwrap().expose()
        };
        assert_eq!(key(&[1, 2, 4]), [7; LEN]);
        assert_eq!(key(&[4, 1, 2]), [7; LEN]);
        let made = generate(3).unwrap();
        assert!(combine(&made).is_ok());
        assert!(generate(1).is_err() && generate(9).is_err());
    }
}
