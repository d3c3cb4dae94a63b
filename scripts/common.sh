# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What every script here shares: where things are, how to say something, how to fail. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034  # used by the scripts that source this
cache=${LGUEST_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/lguest}
# A crash must end the process, not wait for a backtrace to be gathered.
export SWIFT_BACKTRACE=${SWIFT_BACKTRACE:-enable=no}

# say TEXT: a line of ours, on stderr.
say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

# die TEXT: say it and end with 1.
die() {
  say "$@"
  exit 1
}

# require_swift: one line and status 1 when Swift is absent or older than 6.3.
require_swift() {
  command -v swift >/dev/null || die "Swift is not installed; install Swift 6.3 or later from swift.org and put 'swift' on PATH"
  local version
  version=$(swift --version 2>/dev/null | sed -n 's/.*Swift version \([0-9]*\.[0-9]*\).*/\1/p' | head -n 1)
  [[ -n $version ]] || die "'swift --version' says nothing; reinstall Swift 6.3 or later"
  local major=${version%%.*} minor=${version#*.}
  ((major > 6 || (major == 6 && minor >= 3))) || die "Swift $version is too old; install Swift 6.3 or later from swift.org"
}

# The commit that the executable will name.
commit_name() {
  local name
  name=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null) || name=unknown
  if [[ $name != unknown ]] && ! git -C "$root" diff --quiet HEAD 2>/dev/null; then name+=-modified; fi
  printf '%s\n' "$name"
}
