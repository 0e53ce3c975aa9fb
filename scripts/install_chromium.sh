#!/usr/bin/env bash
# The browser that tests/integration/test_pages.py drives.
#
#     scripts/install_chromium.sh            says what to type; installs only where CI=true
#     scripts/install_chromium.sh install    installs Debian's or Ubuntu's Chromium, where that needs no password
#
# It never fails: without a browser the tests of the pages are skipped.
set -uo pipefail

if command -v chromium >/dev/null 2>&1; then
    exit 0
fi

# A checkout's tests must not change the machine of the person who runs them.
if [ "${1:-}" != install ] && [ "${CI:-}" != true ]; then
    echo "No chromium here: the browser tests of the pages will be skipped." \
        "To have them, type: scripts/install_chromium.sh install" >&2
    exit 0
fi

by_hand() {
    echo "Chromium is not installed, so the browser tests of the pages will be skipped. $1" >&2
    exit 0
}

command -v apt-get >/dev/null 2>&1 ||
    by_hand "Install it with your system's package manager, as 'chromium' on the PATH."
root=()
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || by_hand "Type: sudo apt-get install chromium"
    root=(sudo -n)
fi
echo "Installing chromium for the browser tests of the pages ..." >&2
"${root[@]}" apt-get update -qq &&
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends chromium >&2 ||
    by_hand "apt-get could not install it."
command -v chromium >/dev/null 2>&1 ||
    by_hand "apt-get brought no 'chromium' (on Ubuntu it is a snap): snap install chromium"
