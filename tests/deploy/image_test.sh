#!/bin/bash
# make image-test: the CPU image, built and run without Docker, as root on Debian 12 (buildah, debootstrap).
# BUILD_ARGS: for buildah, what this machine's package indexes need, such as "--volume ... --env PIP_CERT=...".
# MIRROR: of Debian, where the base comes from (that of this machine's apt).
set -euo pipefail
cd "$(dirname "$0")/../.."
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
base=localhost/us-jepa-base:bookworm
read -ra build_args <<<"${BUILD_ARGS-}"

if ! buildah inspect "$base" >/dev/null 2>&1; then
    folder=$(mktemp --directory)
    mirror=${MIRROR:-$(apt-cache policy bash | grep -oE 'https?://[^ ]+' | head -n 1)}
    debootstrap --variant=minbase --include=ca-certificates bookworm "$folder" "$mirror" >"$folder.log"
    cp /etc/apt/apt.conf.d/* "$folder/etc/apt/apt.conf.d/"
    empty=$(buildah from scratch)
    buildah copy --quiet "$empty" "$folder" /
    buildah commit --quiet "$empty" "$base"
    buildah rm "$empty"
    rm -rf "$folder"
fi

buildah bud --layers --file deploy/Dockerfile --ignorefile deploy/Dockerfile.dockerignore --target cpu \
    --tag localhost/us-jepa:cpu --build-arg BASE="$base" --build-arg REVISION="$(git rev-parse HEAD)" \
    "${build_args[@]}" .
container=$(buildah from localhost/us-jepa:cpu)
trap 'buildah rm "$container" >/dev/null' EXIT
inside() {
    buildah run --env OMP_NUM_THREADS=1 "$container" -- "$@"
}

[[ $(inside id --user) == 1000 ]]
if inside touch /opt/us-jepa/train/x 2>/dev/null; then
    echo "the user of the image can change its code" >&2
    exit 1
fi
inside us-jepa doctor
inside us-jepa pretrain --smoke --config /opt/us-jepa/train/configs/salt_stage1.yaml
inside us-jepa demo --out /runs/demo
echo "image-test: ok"
