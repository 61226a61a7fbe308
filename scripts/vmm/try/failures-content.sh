# What is broken in the content of a snapshot: the guest is who notices.
# shellcheck shell=sh disable=SC2154 # lib.sh

start wrong restore "$work/good" --way vcpu --break wrong-byte
says "a wrong byte in the snapshot" "$work/wrong" "guest: WRONG"
start lost restore "$work/good" --way vcpu --break lost-page
says "a lost page" "$work/lost" "guest: WRONG"
start early restore "$work/good" --way guest_memfd --break early-clear
says "marks cleared too early" "$work/early" "guest: WRONG"
