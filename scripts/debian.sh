# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Debian packages without touching the machine's own apt: lists, cache, sources and status are private to our cache
# directory. Sourced after common.sh.

: "${cache:?}" # common.sh was sourced
suite=bookworm # the release with the 6.1 kernels
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=${LGUEST_DEBIAN_MIRROR:-http://deb.debian.org}

# private_apt COMMAND...: runs an apt tool on the private state of $architecture (amd64 unless set).
private_apt() {
  local architecture=${architecture:-amd64}
  local state=$cache/apt
  [[ $architecture == amd64 ]] || state+=-$architecture
  if [[ ! -f $state/apt.conf ]]; then
    [[ -r $keyring ]] || die "no $keyring; install the package debian-archive-keyring"
    mkdir -p "$state"/{state/lists/partial,cache/archives/partial}
    : >"$state/status"
    cat >"$state/sources.list" <<LIST
deb [arch=$architecture signed-by=$keyring] $mirror/debian $suite main
deb [arch=$architecture signed-by=$keyring] $mirror/debian $suite-updates main
deb [arch=$architecture signed-by=$keyring] $mirror/debian-security $suite-security main
LIST
    # The machine's own settings are left out, hooks above all; how it reaches the network is kept.
    {
      apt-config dump Acquire
      cat <<CONF
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "$state/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$state/state";
Dir::State::status "$state/status";
Dir::Cache "$state/cache";
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "true";
CONF
    } >"$state/apt.conf.new"
    mv "$state/apt.conf.new" "$state/apt.conf"
  fi
  APT_CONFIG=$state/apt.conf "$@"
}

# update_lists: fetches the package lists, at most once an hour. A mirror that is being updated may refuse one of them:
# the others serve.
update_lists() {
  local state=$cache/apt
  [[ ${architecture:-amd64} == amd64 ]] || state+=-$architecture
  if [[ -n $(find "$state/updated" -mmin -60 2>/dev/null) ]]; then return; fi
  say "fetching Debian's package lists"
  if private_apt apt-get -q=2 update >&2; then
    touch "$state/updated"
  elif compgen -G "$state/state/lists/*_Packages*" >/dev/null; then
    say "going on with the lists that could be fetched"
  else
    die "cannot reach Debian's packages at $mirror; check the network or set LGUEST_DEBIAN_MIRROR"
  fi
}

# real_package NAME: what a metapackage depends on, or NAME itself.
real_package() {
  local dependency
  dependency=$(private_apt apt-cache depends --important "$1" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
  printf '%s\n' "${dependency:-$1}"
}

# unpack_package NAME DIRECTORY: downloads a package and unpacks it there; prints its version.
unpack_package() {
  local name=$1 directory=$2 work version
  work=$(mktemp -d "$cache/download.XXXXXX")
  (cd "$work" && private_apt apt-get -q=2 download "$name" >&2) || {
    rm -rf "$work"
    die "Debian has no package '$name' for ${architecture:-amd64} in $suite, or it cannot be fetched"
  }
  version=$(dpkg-deb -f "$work"/*.deb Version)
  dpkg-deb -x "$work"/*.deb "$directory"
  rm -rf "$work"
  printf '%s\n' "$version"
}

# fetch_busybox ARCHITECTURE DIRECTORY: sees to it that Debian's static busybox is unpacked in the directory. Reads
# $offline.
fetch_busybox() {
  local architecture=$1 directory=$2 version
  [[ ! -x $directory/bin/busybox ]] || return 0
  ! ${offline:-false} || die "busybox for $architecture is not in the cache; run once without --offline"
  update_lists
  rm -rf "$directory.new"
  say "fetching busybox-static for $architecture"
  version=$(unpack_package busybox-static "$directory.new")
  printf '%s\n' "$version" >"$directory.new/version"
  rm -rf "$directory"
  mv "$directory.new" "$directory"
}

# fetch_packages NAME PACKAGE...: sees to it that the packages and all they depend on, resolved by apt for an empty
# machine, are in the cache, listed under NAME by their file names. Reads $offline.
fetch_packages() {
  local archives=$cache/userspace/archives stamp=$cache/userspace/$1
  shift
  if [[ -f $stamp ]] && (cd "$archives" && xargs ls <"$stamp" >/dev/null 2>&1); then return 0; fi
  ! ${offline:-false} || die "the user space's packages are not in the cache; run once without --offline"
  update_lists
  say "fetching $* and what they need"
  mkdir -p "$archives/partial"
  private_apt apt-get -q=2 -y --download-only -o "Dir::Cache::archives=$archives" install "$@" >&2 ||
    die "Debian's packages cannot be fetched; check the network or set LGUEST_DEBIAN_MIRROR"
  private_apt apt-get -q=2 --print-uris -y -o "Dir::Cache::archives=$cache/none" install "$@" |
    awk '{ print $2 }' >"$stamp.new"
  mv "$stamp.new" "$stamp"
}

# unpack_packages NAME TREE: unpacks what fetch_packages listed under NAME, without documentation. No maintainer script
# runs.
unpack_packages() {
  local name=$1 tree=$2 directory archive
  mkdir -p "$tree"/usr/{bin,sbin,lib,lib64}
  for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$tree/$directory"; done
  while read -r archive; do
    dpkg-deb --fsys-tarfile "$cache/userspace/archives/$archive" |
      tar -x -C "$tree" --keep-directory-symlink --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
        --exclude='./usr/share/locale/*' --exclude='./usr/share/info/*' --exclude='./usr/share/zoneinfo/*'
  done <"$cache/userspace/$name"
}
