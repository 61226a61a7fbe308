// error: E0308
// Not any function can be a guest's.
use libkvm::*;

extern "C" fn host(_: u64, _: Gva, _: u64, _: u64) -> ! {
    loop {}
}

fn main() {
    let _ = Vm::new(1, 1, host);
}
