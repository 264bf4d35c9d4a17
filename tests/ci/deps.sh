#!/bin/sh
# deps.sh PACKAGE...: installs the Debian packages that are missing, and says which; says nothing when none is.
command -v dpkg-query >/dev/null || { echo "deps: no Debian system; needed are the likes of: $*" && exit 0; }
missing=
for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
echo "deps: installing$missing"
root="env DEBIAN_FRONTEND=noninteractive"
[ "$(id -u)" -eq 0 ] || root="sudo $root"
$root apt-get -qq update >/dev/null || exit 1
# shellcheck disable=SC2086 # a list of packages
$root apt-get -qq install -y --no-install-recommends $missing >/dev/null || exit 1
