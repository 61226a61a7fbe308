#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Fail if guest code in an object or archive calls what a guest does not have,
# or takes its address: anything but other guest code, and what libkvm has for
# guests. So a panic, an allocation or a call of the C library is noticed when a
# test is built. Pointers in data are not followed. $1 is the file; with $2 it
# must have guest code.

{ "${READELF:-readelf}" -SsrW "$1" 2>&1 || echo unreadable; } | awk -v file="$1" -v must="$2" '
	function fail(what) {
		print file ": " what >"/dev/stderr"
		wrong = 1
	}
	$0 == "unreadable" { fail("readelf has failed") }
	/^ *\[ *[0-9]+\]/ { sections++ }
	/^Relocation section/ { guest = /\047\.relaguest_code\047/ }
	guest && /CALL|JUMP|PLT|TLS/ { called[$5] }
	guest && $3 ~ /^R_/ && !/CALL|JUMP|PLT|TLS/ { taken[$5] }
	match($0, /^ *\[ *[0-9]+\] guest_code /) { section = $0; gsub(/^ *\[ *|\].*/, "", section) }
	$4 == "FUNC" && $7 == section { own[$8] }
	$4 == "FUNC" || $7 == "UND" { code[$8] }
	END {
		if (!sections || must && section == "")
			fail("no guest code to look at")
		for (symbol in called)
			if (!(symbol in own) &&
			    symbol !~ /^(guest_code|ucall|memcpy|memset|memcmp)$/)
				fail("guest code calls " symbol)
		for (symbol in taken)
			if (!(symbol in own) && (symbol in code || symbol ~ /^\.text/) &&
			    symbol !~ /libkvm([0-9]+arm64)?[0-9]+guest|^__st(art|op)_guest_code$/)
				fail("guest code has the address of " symbol)
		exit wrong
	}'
