# What is in an image, as its own records say: Debian's, Python's and npm's. Runs in the image, on a bare Python.
"""Write a CycloneDX 1.6 bill of materials: ``sbom.py IMAGE OUTPUT [FOLDER]``.

With FOLDER only the Debian packages that a file in it comes from: the image is that folder alone.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

STATUS = Path("/var/lib/dpkg/status")
OWNED = Path("/var/lib/dpkg/info")
PLACES = ("/opt", "/usr/lib/python3", "/usr/local/lib")
Component = dict[str, Any]


def main(image: str, output: str, folder: str | None = None) -> None:
    if folder is None:
        found = [*debian(), *python(), *npm()]
    else:
        found = debian(owners(Path(folder)))
    components = {component["bom-ref"]: component for component in found}
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(image, components), indent=1, sort_keys=True) + "\n")


def document(image: str, components: dict[str, Component]) -> dict[str, Any]:
    """The same components make the same document."""
    made_at = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    whole = "\n".join([image, *sorted(components)])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, whole)}",
        "version": 1,
        "metadata": {
            "timestamp": made_at.isoformat(),
            "component": {"type": "container", "name": f"ghost-{image}", "bom-ref": "image"},
        },
        "components": [components[key] for key in sorted(components)],
    }


def component(kind: str, name: str, version: str, purl: str) -> Component:
    return {"type": kind, "name": name, "version": version, "purl": purl, "bom-ref": purl}


def debian(wanted: set[str] | None = None) -> list[Component]:
    found = []
    for paragraph in STATUS.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.splitlines()
            if ": " in line and line[0] != " "
        )
        name = fields.get("Package", "")
        if fields.get("Status") == "install ok installed" and (wanted is None or name in wanted):
            version, machine = fields["Version"], fields["Architecture"]
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={machine}"
            found.append(component("library", name, version, purl))
    return found


def owners(folder: Path) -> set[str]:
    """The packages that a file of the folder has its name from; Python's library is there as byte code."""
    names = {path.name for path in folder.rglob("*.so*")} - {"ld.so"}  # which is libc's, renamed
    interpreter = os.path.realpath(sys.executable)
    found = set()
    for listing in OWNED.glob("*.list"):
        package = listing.name.removesuffix(".list").partition(":")[0]
        files = listing.read_text(encoding="utf-8").splitlines()
        shared = {os.path.basename(path) for path in files if ".so" in os.path.basename(path)}
        library = package.startswith("libpython3")
        if library or shared & names or interpreter in files:
            found.add(package)
    return found


def python() -> Iterator[Component]:
    for place in PLACES:
        for record in sorted(Path(place).rglob("*.dist-info")):
            about = Distribution.at(record).metadata
            if about and about["Name"]:
                name, version = about["Name"], about["Version"]
                purl = f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version)}"
                yield component("library", name, version, purl)


def npm() -> Iterator[Component]:
    for modules in sorted(Path("/opt").rglob("node_modules")):
        for record in sorted([*modules.glob("*/package.json"), *modules.glob("@*/*/package.json")]):
            about = json.loads(record.read_text(encoding="utf-8"))
            name, version = about.get("name"), about.get("version")
            if name and version:
                yield component(
                    "library", name, version, f"pkg:npm/{quote(name, safe='/')}@{quote(version)}"
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
