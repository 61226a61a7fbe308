// error: usage of an `unsafe` block
// Tests have no unsafe code.
fn main() {
    unsafe { std::hint::unreachable_unchecked() }
}
