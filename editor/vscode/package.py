"""Zips the extension: `python editor/vscode/package.py OUT.vsix`, after `npm ci` has brought what it runs with (`make vsix` does both)."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
TYPES = (
    '<?xml version="1.0" encoding="utf-8"?>\n'
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="json" ContentType="application/json"/><Default Extension="js" ContentType="application/javascript"/>'
    '<Default Extension="vsixmanifest" ContentType="text/xml"/></Types>\n'
)
MANIFEST = """<?xml version="1.0" encoding="utf-8"?>
<PackageManifest Version="2.0.0" xmlns="http://schemas.microsoft.com/developer/vsx-schema/2011">
  <Metadata>
    <Identity Language="en-US" Id="{name}" Version="{version}" Publisher="{publisher}"/>
    <DisplayName>{displayName}</DisplayName>
    <Description>{description}</Description>
  </Metadata>
  <Installation><InstallationTarget Id="Microsoft.VisualStudio.Code"/></Installation>
  <Assets><Asset Type="Microsoft.VisualStudio.Code.Manifest" Path="extension/package.json" Addressable="true"/></Assets>
</PackageManifest>
"""


def files() -> list[Path]:
    """What belongs to the extension, with the packages it runs with."""
    own = [
        p
        for p in HERE.rglob("*")
        if p.is_file() and p.suffix in (".json", ".js", ".md", ".txt") and p.name != "package-lock.json"
    ]
    return sorted(p for p in own if p.name != "package-lock.json")


def pack(out: Path) -> None:
    """Writes the same bytes for the same files."""
    about = json.loads((HERE / "package.json").read_text(encoding="utf-8"))
    entries = {"[Content_Types].xml": TYPES.encode(), "extension.vsixmanifest": MANIFEST.format(**about).encode()}
    entries |= {f"extension/{p.relative_to(HERE).as_posix()}": p.read_bytes() for p in files()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
