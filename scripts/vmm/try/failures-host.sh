# What the host does not have.
# shellcheck shell=sh disable=SC2154 # lib.sh

start old restore "$work/good" --way vcpu --break no-capability
await "$work/old.err" "falling back to userfaultfd" || bad "no fallback" "$work/old.err"
check "a kernel without the capability: $(grep back "$work/old.err")" "$work/old.err" goes_on old
kill "$pid"
mv /dev/kvm /dev/kvm.away
start without restore "$work/good" --way vcpu
says "without /dev/kvm" "$work/without.err" "opening /dev/kvm"
mv /dev/kvm.away /dev/kvm
