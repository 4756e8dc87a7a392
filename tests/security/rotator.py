"""A process that is killed: sets, removes and rotates secrets without end. Arguments: the store's folder, a prefix.

The names of its secrets begin with the prefix. Each process has its own: one that removes what another one
has just removed is told so, rightly.

Each line it prints was committed before: ``set NAME VALUE``, ``removed NAME``, ``rotated``.
"""

import os
import random
import sys
from pathlib import Path

from ghost_mcp.secrets.store import SecretStore

store = SecretStore(Path(sys.argv[1]))
chosen = random.Random(os.getpid())
while True:
    name = f"{sys.argv[2]}{chosen.randrange(8)}"
    step = chosen.randrange(4)
    if step == 0:
        store.rotate()
        print("rotated", flush=True)
    elif step == 1 and any(info.name == name for info in store.infos("")):
        print(f"removing {name}", flush=True)
        store.remove("", [name])
        print(f"removed {name}", flush=True)
    else:
        value = os.urandom(24).hex()
        print(f"setting {name} {value}", flush=True)
        store.set("", {name: value.encode()})
        print(f"set {name} {value}", flush=True)
