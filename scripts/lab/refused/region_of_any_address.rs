// error: E0599
// A slot has memory that the crate has mapped: nobody else says where it is.
use libkvm::*;

fn main() {
    let machine = Machine::new(Backing::Anonymous, 16);
    let _ = machine.slot.region().userspace_addr(Hva(0x1000)).set();
}
