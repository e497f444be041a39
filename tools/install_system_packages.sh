#!/bin/sh
# Install Debian packages where that is possible, else say in one line which are missing:
# install_system_packages.sh PACKAGE... Exit status 0: all there, 1: some are missing.
set -eu

missing() {
    for package in "$@"; do
        dpkg-query -W -f='${Status}\n' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done
}

wanted=$(missing "$@" 2>/dev/null | paste -s -d ' ' -)
[ -n "$wanted" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    reason="no apt-get here"
elif [ "$(id -u)" -ne 0 ]; then
    reason="not root; run: sudo apt-get install $wanted"
else
    echo "installing the system packages $wanted"
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    if timeout 300 sh -c 'apt-get update && apt-get install -y --no-install-recommends "$@"' sh $wanted >"$log" 2>&1; then
        rm -f "$log"
        exit 0
    fi
    reason="apt-get failed: $(tail -n 1 "$log")"
    rm -f "$log"
fi
echo "missing system packages: $wanted ($reason)" >&2
exit 1
