// SPDX-License-Identifier: GPL-2.0-only

//! Modules that only arm64 has.

pub mod guest_access;
pub mod guest_el2;
mod guest_system;
pub mod guest_tags;
mod its;
mod nested;
mod stage2;
mod tags;

pub use crate::bindings::{
    GICR_CTLR,
    GICR_PENDBASER,
    GICR_PROPBASER,
    GITS_BASER,
    GITS_CBASER,
    GITS_CREADR,
    GITS_CTLR,
    GITS_CWRITER, //
};
pub use its::Its;
pub use nested::L2Table;
pub use stage2::Mapping;
