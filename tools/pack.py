"""Pack the host's programs into one executable file, byte for byte the same from the same sources."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from tools.shell import CACHE, ROOT

SOURCE = ROOT / "files" / "holdfast"
TARGET = CACHE / "holdfast.pyz"
SHEBANG = b"#!/usr/bin/python3 -I\n"
MAIN = "import sys\nfrom holdfast.__main__ import main\nsys.exit(main())\n"
# A zip file can't hold a date before this one.
EPOCH = (1980, 1, 1, 0, 0, 0)


def pack() -> bool:
    """Write .cache/holdfast.pyz, and say whether it is another file than before."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        files: dict[str, bytes] = {"__main__.py": MAIN.encode()}
        files |= {str(path.relative_to(SOURCE)): path.read_bytes() for path in SOURCE.rglob("*.py") if "tests" not in path.parts}
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), files[name])
    content = SHEBANG + buffer.getvalue()
    if TARGET.exists() and TARGET.read_bytes() == content:
        return False
    Path(TARGET).parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(content)
    return True
