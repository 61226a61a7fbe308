#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Fail if guest code in an object or archive calls what a guest does not have:
# anything but other guest code, and what libkvm has for guests. So a panic, an
# allocation or a call of the C library is noticed when a test is built.

: "${READELF:=readelf}"
command -v "$READELF" >/dev/null || { echo "$READELF is missing" >&2; exit 1; }
"$READELF" -SsrW "$1" 2>/dev/null | awk -v file="$1" '
	/^Relocation section/ { guest = /guest_code/ }
	guest && /CALL|JUMP|PLT|TLS/ { called[$5] }
	match($0, /^ *\[ *[0-9]+\] guest_code /) { section = $0; gsub(/^ *\[ *|\].*/, "", section) }
	$4 == "FUNC" && $7 == section { own[$8] }
	END {
		for (symbol in called)
			if (!(symbol in own) &&
			    symbol !~ /^(guest_code|ucall|memcpy|memset|memcmp)$/) {
				print file ": guest code calls " symbol >"/dev/stderr"
				wrong = 1
			}
		exit wrong
	}'
