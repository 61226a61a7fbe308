// error: E0505
// A bitmap is there for as long as a slot has the flag, in whatever way it was set.
use libkvm::*;

fn main() {
    let machine = Machine::new(Backing::Anonymous, 16);
    let [first, second] = [Bitmap::new(16), Bitmap::new(16)];
    let flag = machine.slot.recreate(&first);
    flag.disable();
    let flag = machine.slot.enable_with(&second, KVM_MEM_LOG_DIRTY_PAGES);
    drop((first, second));
    flag.disable_with(0);
}
