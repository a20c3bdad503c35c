"""Building `agent.pyz`, the one file that is sent to a machine.

Deterministic: the same sources give the same bytes (fixed dates and modes, sorted names), so its sha256 names what ran.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip file knows
_MAIN = b"import sys\nfrom workers.agent.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"


@dataclass(frozen=True, slots=True)
class AgentPackage:
    """The zipapp and its sha256 in hex."""

    content: bytes = field(repr=False)
    sha256: str


def build_agent() -> AgentPackage:
    """Pack the agent's sources as they are installed here; no compiled files, no schemas, nothing of other packages."""
    root = Path(__file__).parent
    sources = {path.relative_to(root.parent).as_posix(): path.read_bytes() for path in (root / "agent").glob("*.py")}
    sources["workers/__init__.py"] = (root / "__init__.py").read_bytes()
    sources["__main__.py"] = _MAIN
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # the same on every system
            archive.writestr(entry, sources[name])
    content = buffer.getvalue()
    return AgentPackage(content, hashlib.sha256(content).hexdigest())
