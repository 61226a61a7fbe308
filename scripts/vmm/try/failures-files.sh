# What is broken in the files of a snapshot, or has no room.
# shellcheck shell=sh disable=SC2154 # lib.sh

for what in memory state; do
	cp -r "$work/good" "$work/short"
	truncate -s -1 "$work/short/$what" 2>/dev/null ||
		dd if="$work/good/$what" of="$work/short/$what" bs=4095 count=1 2>/dev/null
	start "short-$what" restore "$work/short" --way vcpu
	says "a snapshot with a truncated $what" "$work/short-$what.err" "truncated"
	rm -r "$work/short"
done
tell source "snapshot $work/other"
cp "$work/good/state" "$work/other/state"
start foreign restore "$work/other" --way vcpu
says "the memory of another machine" "$work/foreign.err" "does not belong"
rm -r "$work/other"
mkdir "$work/small" && mount -t tmpfs -o size=8m tmpfs "$work/small"
tell source "snapshot $work/small/it"
[ -z "$(ls "$work/small/it")" ] || bad "a full disk, where files are left" "$work/source.err"
stays "a full disk, and the guest goes on"
umount "$work/small"
