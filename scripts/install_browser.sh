#!/bin/sh
# Install the browser that the tests marked `browser` open the report in: Debian's Chromium.
# Tests are skipped, with a reason, where there is none; $CHROMIUM names one elsewhere.
set -eu

if command -v "${CHROMIUM:-chromium}" >/dev/null 2>&1; then
    echo "already there: $(command -v "${CHROMIUM:-chromium}")"
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "no apt-get here: install Chromium by other means and name it in \$CHROMIUM" >&2
    exit 1
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    as_root="sudo"
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends chromium
