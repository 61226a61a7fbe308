// error: E0308
// A guest virtual address is not a guest physical one.
use libkvm::*;

fn main() {
    let (mut vm, _vcpus) = Vm::new(1, 1, guest::read_pages);
    vm.map(Gva(0), Gva(0), 1);
}
