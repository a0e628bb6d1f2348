#!/usr/bin/env bash
# On every worker, started by ../setup.sh: mounts the bucket and installs the program with pinned
# versions. Running it again is safe.
#
# Usage: setup.sh BUCKET MOUNT
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bucket=$1 mount=$2
source_folder=${here%/tpu_scripts/worker}
UV_VERSION=0.13.9

if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A new machine updates itself first and holds the lock meanwhile.
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 install --yes gcsfuse
fi
"$here/mount.sh" "$bucket" "$mount"

# The images of TPU machines bring Python 3.10, which is too old; uv brings the right one.
uv=$HOME/mental-r1/bin/uv
if [[ "$("$uv" --version 2>/dev/null)" != "uv $UV_VERSION"* ]]; then
  curl -fsSL "https://astral.sh/uv/$UV_VERSION/install.sh" |
    env UV_INSTALL_DIR="$HOME/mental-r1/bin" UV_NO_MODIFY_PATH=1 sh
fi
"$uv" venv --quiet --allow-existing --python 3.11 "$HOME/mental-r1/venv"
"$uv" pip install --quiet --python "$HOME/mental-r1/venv/bin/python" \
  --constraint "$source_folder/tpu_scripts/constraints.txt" \
  --reinstall-package mental-r1-jax "mental-r1-jax[tpu] @ file://$source_folder"
echo "$(hostname): ready"
