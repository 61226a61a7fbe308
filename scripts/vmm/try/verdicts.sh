# How the trials say what they found.
# shellcheck shell=sh disable=SC2154 # lib.sh

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

# says NAME FILE TEXT: what was broken is said in these words, and the VMM $pid ended.
says()
{
	if await "$2" "$3" && ! wait "$pid"; then
		ok "$1: $(grep -h -o -- "$3.*" "$2" | head -n 1)"
	else
		bad "$1" "$2" "${2%.err}"
		kill "$pid" 2>/dev/null
	fi
}

# stays NAME: the command that the first VMM was given failed, and its guest goes on.
stays()
{
	pid=$source
	check "$1: $(cat "$work/answer")" "$work/source.err" goes_on source
}
