# What the trials on the lab's machine share. Each prints "ok NAME" or "FAIL NAME", and "row ..."
# for the table that scripts/lab/vmm.py makes.
# shellcheck shell=sh disable=SC1091,SC2034

here=$(dirname -- "$0")
vmm=$here/vmm
work=$(mktemp -d)
. "$here/verdicts.sh"

# start NAME WORD...: runs a VMM in the background with its console in $work/NAME.
start()
{
	name=$1
	shift
	"$vmm" "$@" --control "$work/$name.control" >"$work/$name" 2>"$work/$name.err" &
	pid=$!
}

# boot ROUNDS: starts a guest, "source", and waits until it has verified its memory once.
boot()
{
	start source boot --image "$here/Image" --initrd "$here/guest.cpio.gz" --memory 128 --vcpus 4 \
		--append "quiet rounds=$1 ${APPEND:-}"
	source=$pid
	await "$work/source" "guest: round 1:" || bad "the guest boots" "$work/source" "$work/source.err"
}

# serve FOLDER: starts the handler $pid of a snapshot.
serve()
{
	"$vmm" handler "$1" "$work/handler" 2>"$work/handler.err" &
	pid=$!
	await "$work/handler.err" listening
}

# tell NAME COMMAND: gives a VMM a command, and leaves its answer in $work/answer.
tell() { "$vmm" tell "$work/$1.control" "$2" >"$work/answer"; }

# goes_on NAME: the guest of the VMM $pid ends a round that begins from now on.
goes_on()
{
	await "$work/$1" "guest: round"
	round=$(sed -n 's/.*guest: round \([0-9]*\):.*/\1/p' "$work/$1" | tail -n 1)
	await "$work/$1" "guest: round $((round + 1)):"
}

# has_all NAME: so does a guest that began without its memory, which verifies every word, and
# then all of the memory is there.
has_all() { goes_on "$1" && await "$work/$1.err" "all of the memory is there"; }
