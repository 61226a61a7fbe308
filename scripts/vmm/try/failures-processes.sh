# Processes that die.
# shellcheck shell=sh disable=SC2154 # lib.sh

# orphan NAME: restores a guest by a handler, and lets both run.
orphan()
{
	serve "$work/good"
	handler=$pid
	start "$1" restore "$work/good" --way process --handler "$work/handler"
	await "$work/$1.err" "the vCPUs run"
}

start vanishing restore "$work/good" --way vcpu
kill -9 "$pid"
wait "$pid" 2>/dev/null
start again restore "$work/good" --way vcpu
check "a VMM killed half way, and restored again" "$work/again.err" goes_on again
kill "$pid"

orphan deserted
kill -9 "$handler"
says "a handler that dies" "$work/deserted.err" "the handler has gone"

orphan leaving
kill -9 "$pid"
pid=$handler
if wait "$handler"; then
	ok "a VMM that dies before its handler"
else
	says "a VMM that dies before its handler" "$work/handler.err" "the VMM has gone"
fi

tell source "migrate $work/nobody postcopy"
stays "a migration to nobody"
start half receive "$work/half.link"
await "$work/half.err" "waiting for a machine"
tell source "migrate $work/half.link precopy" &
await "$work/half.err" "a machine is coming"
kill -9 "$pid"
pid=$source
await "$work/answer" "stays here" || bad "a destination that dies" "$work/answer"
stays "a destination that dies"
kill "$source"
