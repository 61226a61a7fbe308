# What the trials on the lab's machine share. Each prints "ok NAME" or "FAIL NAME", and "row ..."
# for the table that scripts/lab/vmm.py makes.
# shellcheck shell=sh disable=SC2034

here=$(dirname -- "$0")
vmm=$here/vmm
work=$(mktemp -d)
failed=0

ok() { echo "ok $*"; }

# bad NAME FILE...: something failed, and the files say more.
bad()
{
	echo "FAIL $1"
	shift
	for file; do tail -n 12 "$file" | sed 's/^/    /'; done
	failed=$((failed + 1))
}

# check NAME FILE COMMAND...: the command succeeds, or the file says more.
check()
{
	title=$1 log=$2
	shift 2
	if "$@"; then ok "$title"; else bad "$title" "$log"; fi
}

# await FILE TEXT: waits until a file has a text; fails after two minutes, or when
# the VMM $pid has ended without it.
await()
{
	end=$(($(date +%s) + ${PATIENCE:-120}))
	until grep -q -- "$2" "$1" 2>/dev/null; do
		[ "$(date +%s)" -lt $end ] || return 1
		if ! kill -0 "$pid" 2>/dev/null; then
			grep -q -- "$2" "$1" 2>/dev/null
			return
		fi
		sleep 0.2
	done
}

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
