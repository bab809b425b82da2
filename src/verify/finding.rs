//! What can be wrong with what is stored: the closed list of docs/verify.md.

macro_rules! findings {
    ($( $(#[doc = $doc:literal])* $name:ident => $word:literal; )*) => {
        /// What is wrong with an object or a version of it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Finding { $( $(#[doc = $doc])* $name, )* }

        impl Finding {
            /// Every one, in the order of docs/verify.md.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )* ];

            /// Its word in the answer.
            #[must_use]
            pub const fn word(self) -> &'static str { match self { $( Self::$name => $word, )* } }
        }
    };
}

findings! {
    /// The current object is not in the bucket.
    Missing => "missing";
    /// Somebody else put a delete marker on it.
    Deleted => "deleted";
    /// An older version that should be there is not.
    VersionMissing => "version-missing";
    /// What this host replaced or deleted, or something older, is current.
    RolledBack => "rolled-back";
    /// A message that belongs elsewhere stands there.
    Swapped => "swapped";
    /// The same message was stored again by somebody.
    ReUploaded => "re-uploaded";
    /// Another writer's newer message stands there.
    Foreign => "foreign";
    /// Something stands there that this host did not store.
    Replaced => "replaced";
    /// The right object has another size.
    WrongSize => "wrong-size";
    /// Its bytes are others.
    Altered => "altered";
    /// It ends too early or goes on too long.
    Truncated => "truncated";
    /// No key at hand opens it.
    Unreadable => "unreadable";
    /// This host knows of nothing there.
    Extra => "extra";
    /// The catalogue is older than the evidence: nothing above is certain.
    CatalogueRolledBack => "catalogue-rolled-back";
}
