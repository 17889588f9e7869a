"""Inputs for the real models: speech of eSpeak NG, lines of text drawn with Pillow, and files of this machine."""

from __future__ import annotations

import functools
import itertools
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

RATE = 16000
SEEDS = {"evaluation": 1, "calibration": 2}
SPEECH = Path(__file__).parent.parent / "weights" / "speech.npz"

TEXT = """invoice total amount date number street payment 2026 account service Order customer 19.99 tax balance due
Thank you page reference bank transfer 48-12 delivery address contact office hours Monday report final draft
energy water limited company please note return within 30 days EUR 1,250.00 item quantity price discount"""


@functools.cache
def utterances(split: str) -> list[Floats]:
    """Spoken sentences at 16 kHz, from -1 to 1, of voices that no other split has."""
    with np.load(SPEECH, allow_pickle=False) as file:
        wave, cuts = file[split].astype(np.float32) / 32768, file[f"{split}_cuts"]
    return [wave[a:b] for a, b in itertools.pairwise(cuts)]


def clips(split: str, count: int, length: int) -> Floats:
    """Clips of speech with pauses, [count, length], each with noise and a gain of its own.

    Of eight clips, one contains notes instead of speech, and one contains noise alone.
    """
    rng = np.random.default_rng(SEEDS[split] * 101)
    found = np.zeros((count, length), np.float32)
    for number in range(count):
        kind = number % 8
        clip = _speech(rng, split, length) if kind < 6 else np.zeros(length, np.float32)
        if kind == 6:
            clip = _notes(rng, length)
        power = float(np.sqrt(np.mean(np.square(clip)) + 1e-9))
        noise = rng.standard_normal(length).astype(np.float32)
        if rng.random() < 0.5:
            noise = np.convolve(noise, np.ones(16) / 4, "same").astype(np.float32)
        level = power * 10 ** (-rng.uniform(-5, 40) / 20) if power > 1e-4 else 10 ** rng.uniform(-4, -1.5)
        found[number] = np.clip((clip + level * noise) * 10 ** rng.uniform(-1, 0.3), -1, 1)
    return found


def _speech(rng: np.random.Generator, split: str, length: int) -> Floats:
    spoken = utterances(split)
    parts: list[Floats] = []
    while sum(map(len, parts)) < length + RATE:
        parts += [np.zeros(int(rng.integers(0, RATE // 2)), np.float32), spoken[int(rng.integers(len(spoken)))]]
    wave = np.concatenate(parts)
    start = int(rng.integers(0, len(wave) - length + 1))
    return wave[start : start + length]


def _notes(rng: np.random.Generator, length: int) -> Floats:
    """Plucked notes, up to three at once."""
    wave = np.zeros(length)
    at = 0
    while at < length:
        span = int(RATE * rng.uniform(0.15, 0.6))
        seconds = np.arange(min(span, length - at)) / RATE
        for note in rng.integers(36, 84, int(rng.integers(1, 4))):
            hertz = 440 * 2 ** ((int(note) - 69) / 12)
            for overtone in range(1, 6):
                if hertz * overtone < RATE / 2:
                    swing = np.sin(2 * np.pi * hertz * overtone * seconds) / overtone
                    wave[at : at + len(seconds)] += swing * np.exp(-3 * seconds) * 0.2
        at += span
    return wave.astype(np.float32)


def line_of_text(rng: np.random.Generator, height: int = 48, width: int = 320) -> Bytes:
    """A picture of one to three words, [height, width, 3]."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    fonts = sorted((Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf").glob("DejaVu*.ttf"))
    text = " ".join(rng.choice(TEXT.split(), int(rng.integers(1, 4))))
    font = ImageFont.truetype(str(fonts[int(rng.integers(len(fonts)))]), int(rng.integers(20, 30)))
    back = tuple(int(value) for value in rng.integers(190, 256, 3))
    ink = tuple(int(value) for value in rng.integers(0, 90, 3))
    box = font.getbbox(text)
    picture: Any = Image.new("RGB", (int(box[2]) + 16, int(box[3]) + 14), back)
    ImageDraw.Draw(picture).text((8, 6), text, ink, font=font)
    picture = picture.rotate(float(rng.uniform(-1.5, 1.5)), fillcolor=back, resample=Image.Resampling.BICUBIC)
    ratio = min(width / picture.width, height / picture.height)
    small = picture.resize((max(8, int(picture.width * ratio)), max(8, int(picture.height * ratio))))
    whole = Image.new("RGB", (width, height), back)
    whole.paste(small, (0, (height - small.height) // 2))
    noisy = np.asarray(whole).astype(np.float32) + rng.normal(0, rng.uniform(0, 10), (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def files_of_this_machine(split: str, count: int) -> list[Path]:
    """Files of many types; the checksum of a file's name determines its split."""
    kinds: dict[str, list[Path]] = {}
    roots = [Path(path) for path in sys.path if "site-packages" in path] + [
        Path("/usr/share"),
        Path("/usr/lib/python3"),
    ]
    for root in filter(Path.is_dir, roots):
        for path in sorted(root.rglob("*"))[:60000]:
            if _is_in(split, path.name) and path.suffix and path.is_file() and 16 <= path.stat().st_size < 5_000_000:
                kinds.setdefault(path.suffix, []).append(path)
    found = [path for depth in range(25) for suffix in sorted(kinds) for path in kinds[suffix][depth : depth + 1]]
    return [found[i] for i in np.random.default_rng(SEEDS[split]).permutation(len(found[:count]))]


def sentences(split: str, count: int) -> list[str]:
    """First sentences of documentation strings of installed packages; a package is in one split only."""
    import re

    found: set[str] = set()
    for root in (Path(path) for path in sys.path if path.endswith("site-packages")):
        for path in sorted(root.glob("*/*.py")):
            if _is_in(split, path.parent.name) and path.stat().st_size < 200_000:
                for block in re.findall(r'"""(.*?)"""', path.read_text(errors="ignore"), re.DOTALL)[:4]:
                    first = re.split(r"(?<=[.!?]) ", " ".join(block.split()))[0]
                    if 25 < len(first) < 160 and first.isascii() and first[0].isupper():
                        found.add(first)
    rows = sorted(found)
    return [rows[i] for i in np.random.default_rng(SEEDS[split]).permutation(len(rows))[:count]]


def _is_in(split: str, name: str) -> bool:
    return zlib.crc32(name.encode()) % 2 == SEEDS[split] - 1
