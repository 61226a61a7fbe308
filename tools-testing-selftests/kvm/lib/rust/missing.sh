#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Say what the tests in Rust lack, if anything: $1 is the top of the source tree,
# $2 the target, $3 readelf. Versions have to be those that the kernel itself
# wants, or newer.

for tool in rustc bindgen; do
	case $tool in
	rustc) command=${RUSTC:-rustc} ;;
	bindgen) command=${BINDGEN:-bindgen} ;;
	esac
	have=$($command --version 2>/dev/null | sed -n '1s/^[a-z]* \([0-9.]*\).*/\1/p')
	need=$(sh "$1/scripts/min-tool-version.sh" $tool) || {
		echo "scripts/min-tool-version.sh failed"
		exit
	}
	if [ -z "$have" ]; then
		echo "$tool is missing"
		exit
	fi
	if [ "$(printf '%s\n' "$need" "$have" | sort -V | head -n 1)" != "$need" ]; then
		echo "$tool is $have, older than $need"
		exit
	fi
done

libdir=$(${RUSTC:-rustc} --print target-libdir --target="$2" 2>/dev/null)
if ! ls "$libdir"/libstd-*.rlib >/dev/null 2>&1; then
	echo "the Rust standard library for $2 is missing"
elif ! command -v "$3" >/dev/null; then
	echo "$3 is missing"
elif ! ${BINDGEN:-bindgen} "$1/scripts/rust_is_available_bindgen_libclang.h" >/dev/null 2>&1; then
	echo "bindgen finds no libclang"
fi
