# What the trials on the lab's machine share. Each prints "ok NAME" or "FAIL NAME", and "row ..."
# for the table that scripts/lab/vmm.py makes.
# shellcheck shell=sh disable=SC2034

here=$(dirname -- "$0")
vmm=$here/vmm
image=${IMAGE:-$here/Image}
initrd=${INITRD:-$here/guest.cpio.gz}
work=$(mktemp -d)
failed=0

ok() { echo "ok $*"; }

bad()
{
	echo "FAIL $1"
	shift
	for file; do tail -n 12 "$file" | sed 's/^/    /'; done
	failed=$((failed + 1))
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

# boot NAME ROUNDS: starts a guest that verifies its memory so often.
boot()
{
	start "$1" boot --image "$image" --initrd "$initrd" --memory "${MEMORY:-128}" \
		--vcpus "${VCPUS:-4}" --append "quiet rounds=$2 ${APPEND:-}"
}

# ended NAME: the guest of the VMM $pid went through all its rounds and powered off.
ended()
{
	wait "$pid" && await "$work/$1" "guest: round" && ! grep -q "guest: WRONG" "$work/$1"
}

# row NAME WORD...: the figures that a VMM reported.
row()
{
	report=$(sed -n 's/^vmm: report //p' "$work/$1.err" | tr '\n' ' ')
	shift
	echo "row $* $report"
}
