"""Glyphs: 162 characters in the fonts that matplotlib ships, rendered 28 × 28 and disturbed.

ImageNet's counterpart for a laptop: real typefaces, many classes, some of them hard to tell apart.
"""

import io
from pathlib import Path

import matplotlib
import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from tqdm import tqdm

from study.corpora import write_split

ASCII = [chr(code) for code in range(33, 127)]
GREEK = [chr(code) for code in range(0x3B1, 0x3CA)]
CYRILLIC = list("БГДЖЗИЛПФЦЧШЩЪЫЬЭЮЯбвгджзиклмнптфцчшщъыьэюя")
CHARACTERS = ASCII + GREEK + CYRILLIC
SIDE = 28  # pixels
CANVAS = 64  # pixels; characters are drawn large, then shrunk and bent in one step


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Write one Parquet file per split, as data sets on the hub are stored.

    Args:
        folder: an existing, empty folder.
        train, validation, test: number of images.

    Invariant: the same numbers give the same bytes.
    """
    features = Features({"image": Image(), "label": ClassLabel(names=CHARACTERS)})
    splits = {"train": train, "validation": validation, "test": test}
    for seed, (split, n) in enumerate(splits.items()):
        images, labels = render_glyphs(n, seed, desc=f"glyphs {split}")
        dataset = Dataset.from_dict({"image": images, "label": labels}, features=features)
        write_split(dataset, folder, split)


def render_glyphs(n: int, seed: int, desc: str = "glyphs") -> tuple[list[dict], list[int]]:
    """Render random characters in random fonts.

    Args:
        n: number of images.
        seed: of the random generator.
        desc: what the progress bar says.

    Returns:
        n PNG images as `datasets` stores them, and n labels, indices into `CHARACTERS`.
    """
    rng = np.random.default_rng(seed)
    fonts = load_fonts()
    labels = rng.integers(len(CHARACTERS), size=n)
    images = []
    for label in tqdm(labels, desc=desc, unit="image", leave=False):
        pixels = _draw(CHARACTERS[label], fonts[rng.integers(len(fonts))], rng)
        stream = io.BytesIO()
        Pillow.fromarray(pixels).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
    return images, labels.tolist()


def load_fonts() -> list[ImageFont.FreeTypeFont]:
    """The text fonts among those that matplotlib ships."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = sorted(path.name for path in folder.glob("*.ttf"))
    text = [n for n in names if n.startswith(("DejaVu", "STIXGeneral")) and "Display" not in n]
    return [ImageFont.truetype(folder / name, 40) for name in text]


def _draw(character: str, font: ImageFont.FreeTypeFont, rng: np.random.Generator) -> np.ndarray:
    """One disturbed character: (SIDE, SIDE) uint8."""
    canvas = Pillow.new("L", (CANVAS, CANVAS), 0)
    middle = CANVAS / 2
    ImageDraw.Draw(canvas).text((middle, middle), character, fill=255, font=font, anchor="mm")
    angle, shear = rng.normal(0, 0.15, 2)
    cos, sin, scale = np.cos(angle), np.sin(angle), rng.uniform(1.4, 2.2)
    A = scale * np.array([[cos, shear - sin], [sin, cos]])
    shift = middle + rng.normal(0, 2, 2) - A @ np.full(2, SIDE / 2)
    affine = (A[0, 0], A[0, 1], shift[0], A[1, 0], A[1, 1], shift[1])
    small = canvas.transform(
        (SIDE, SIDE), Pillow.Transform.AFFINE, affine, resample=Pillow.Resampling.BILINEAR
    )
    contrast, noise = rng.uniform(0.5, 1), rng.normal(0, 25, (SIDE, SIDE))
    return np.clip(np.asarray(small, np.float32) * contrast + noise, 0, 255).astype(np.uint8)
