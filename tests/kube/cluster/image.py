#!/usr/bin/env python3
"""Make a docker-archive image from a root file system: image.py OUT.tar NAME ROOTFS_DIR|FILE=PATH... -- CONFIG_JSON"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

out, name, root, config = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4] if len(sys.argv) > 4 else "{}")
layer = out + ".layer"
subprocess.run(["tar", "--numeric-owner", "-C", root, "-cf", layer, "."], check=True)
digest = hashlib.sha256()
with open(layer, "rb") as f:
    while block := f.read(1 << 20):
        digest.update(block)
diff = digest.hexdigest()
cfg = json.dumps(
    {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + diff]},
        "history": [{"created_by": "image.py"}],
    }
).encode()
cfgname = hashlib.sha256(cfg).hexdigest() + ".json"
manifest = json.dumps([{"Config": cfgname, "RepoTags": [name], "Layers": [diff + "/layer.tar"]}]).encode()
with tarfile.open(out, "w") as tar:

    def add(path, data):
        info = tarfile.TarInfo(path)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))

    add(cfgname, cfg)
    tar.add(layer, diff + "/layer.tar")
    add("manifest.json", manifest)
os.unlink(layer)
