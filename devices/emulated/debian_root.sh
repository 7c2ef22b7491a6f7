#!/usr/bin/env bash
# A fresh arm64 Debian without a compiler, emulated on this machine: one pip command installs the wheel there, and
# `tinytl-edge train` goes from images to an adapter, with a bundle that was prepared here.
#
#     devices/emulated/debian_root.sh WHEEL BUNDLE IMAGES [OPTIONS OF tinytl-edge train]
#
# IMAGES holds train/ and test/, with one folder for each class in either. Runs as root on Debian, with the
# packages debootstrap and qemu-user-static. What it makes lies in $ROOT (default: build/debian-arm64), which it
# takes up again where it is there: remove it to start afresh.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,9s/^# \?//p' "$0"; exit 2; }
wheel=$(realpath "$1") bundle=$(realpath "$2") images=$(realpath "$3")
shift 3
cd "$(dirname "$0")/../.."
root=$(realpath -m "${ROOT:-build/debian-arm64}")

said() { printf '\n== %s\n' "$*"; }

# The kernel hands ARM executables to qemu, in chroots too.
if [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then
  mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
  cat /usr/lib/binfmt.d/qemu-aarch64.conf > /proc/sys/fs/binfmt_misc/register
fi

if [ ! -e "$root/etc/debian_version" ]; then
  said "debootstrap of an arm64 Debian with Python and pip alone"
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -1)
  time debootstrap --arch=arm64 --variant=minbase --include=python3,python3-venv,ca-certificates \
    bookworm "$root" "$mirror" > "$root.log" || { tail "$root.log"; exit 1; }
fi
# What this machine needs to reach the package registry.
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
  [ ! -e "$file" ] || cp -L "$file" "$root$file"
done

mkdir -p "$root/board/images"
cp "$wheel" "$root/board/"
rm -rf "$root/board/bundle" "$root/board/run"
cp -r "$bundle" "$root/board/bundle"
mounts=("$root/proc" "$root/board/images")
trap 'umount "${mounts[@]}" 2>/dev/null || true' EXIT
mount -t proc proc "$root/proc"
mount --bind -o ro "$images" "$root/board/images"

inside() { chroot "$root" /usr/bin/env -i HOME=/root PATH=/board/venv/bin:/usr/bin:/bin LANG=C.UTF-8 "$@"; }

said "inside"
inside uname -m
if inside sh -c 'command -v cc gcc g++ c++ clang make cmake'; then echo "there is a compiler"; exit 1; fi
echo "no compiler"
rm -rf "$root/board/venv"
inside python3 -m venv /board/venv

said "pip install"
time inside pip install --no-cache-dir --only-binary :all: "/board/$(basename "$wheel")"
inside pip list

said "train"
time inside tinytl-edge train /board/bundle --data /board/images/train --val /board/images/test \
  --out /board/run "$@"
inside tinytl-edge evaluate /board/run --data /board/images/test
image=$(cd "$images" && find test -type f | sort | head -1)
inside tinytl-edge predict /board/run "/board/images/$image"
ls -l "$root/board/run"
