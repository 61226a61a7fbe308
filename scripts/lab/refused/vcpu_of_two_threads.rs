// error: E0499
// A vCPU is run by one thread at a time.
use libkvm::*;

fn main() {
    let mut machine = Machine::new(Backing::Anonymous, 16);
    let vcpu = &mut machine.vcpus[0];
    std::thread::scope(|scope| {
        scope.spawn(|| vcpu.run());
        scope.spawn(|| vcpu.run());
    });
}
