// error: E0624
// KVM is told of a slot by who has nobody else change it, and minds the flag.
use libkvm::*;

fn main() {
    let machine = Machine::new(Backing::Anonymous, 16);
    let _ = machine.slot.region().tell();
}
