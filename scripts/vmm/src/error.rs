// SPDX-License-Identifier: GPL-2.0-only
//! Errors are for the user: a sentence that says what was tried and what came of it.

use std::fmt;

#[derive(Debug)]
pub struct Error(pub String);

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error of the last system call.
    pub fn last_os(what: &str) -> Self {
        Self(format!("{what}: {}", std::io::Error::last_os_error()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says what was tried when something failed.
pub trait Context<T> {
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error(format!("{what}: {error}")))
    }
}

/// Returns an error from a function.
macro_rules! fail {
    ($($words:tt)*) => { return Err($crate::error::Error(format!($($words)*))) };
}
pub(crate) use fail;
