// error: E0451
// What KVM is told of a slot cannot be made but from a slot.
use libkvm::*;

fn region(slot: Slot) -> Region {
    Region {
        slot,
        raw: Default::default(),
        bitmap: None,
    }
}

fn main() {
    let _ = region;
}
