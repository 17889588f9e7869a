"""Speaks sentences with eSpeak NG: `python speaking.py FOLDER-OF-THE-PACKAGE TARGET.npz`.

TARGET.npz gets two arrays for each split: the sound (int16, 16 kHz) and, under `<split>_cuts`, where utterances begin.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import sys
from typing import Any

import numpy as np
from scipy.signal import resample_poly

RATE = 16000
SYNCHRONOUS = 2  # espeak_Initialize: samples go to the callback
UTF8 = 1
RATE_OF_SPEECH, PITCH = 1, 3  # espeak_SetParameter
COUNT = 64
SUBJECTS = (
    "the quick brown fox", "a young doctor", "our old neighbour", "every passenger", "the new library", "my sister",
    "the weather report", "a careful engineer", "their small garden", "the last train",
)  # fmt: skip
VERBS = (
    "opens late on", "walked slowly through", "never liked", "asked about", "was painted in", "remembers",
    "left early because of", "depends on", "finished reading", "cannot find",
)  # fmt: skip
OBJECTS = (
    "the second floor", "heavy rain this morning", "an empty street", "sixteen yellow boxes", "the question of money",
    "our summer holiday", "a broken window", "the evening news", "her grandmother's house", "several thousand people",
)  # fmt: skip
VOICES = {
    "evaluation": ("en-us", "en-us+f2", "en-gb+m3", "en-us+m7", "en-gb-scotland+f4", "de", "fr+f3"),
    "calibration": ("en-gb", "en-us+f3", "en-us+m1", "es+m4"),
}


def main(folder: str, target: str) -> None:
    """Speak COUNT sentences for each split."""
    sys.path.insert(0, folder)
    loader = importlib.import_module("espeakng_loader")
    library: Any = ctypes.CDLL(loader.get_library_path())
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, os.path.dirname(loader.get_data_path()).encode(), 0)
    if rate < 8000:
        rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(loader.get_data_path()).encode(), 0)
    heard: list[np.ndarray[Any, Any]] = []
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def hear(wave: Any, count: int, _: Any) -> int:
        if wave and count > 0:
            heard.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0

    callback = kind(hear)
    library.espeak_SetSynthCallback(callback)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for seed, (split, voices) in enumerate(VOICES.items(), 1):
        rng = np.random.default_rng(seed)
        parts = []
        for number in range(COUNT):
            heard.clear()
            text = f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}.".encode()
            library.espeak_SetVoiceByName(voices[number % len(voices)].encode())
            library.espeak_SetParameter(RATE_OF_SPEECH, int(rng.integers(130, 200)), 0)
            library.espeak_SetParameter(PITCH, int(rng.integers(30, 70)), 0)
            library.espeak_Synth(text, len(text) + 1, 0, 1, 0, UTF8, None, None)
            library.espeak_Synchronize()
            common = math.gcd(RATE, rate)
            wave = resample_poly(np.concatenate(heard).astype(np.float64), RATE // common, rate // common)
            parts.append(np.clip(wave, -32768, 32767).astype(np.int16))
        found[split] = np.concatenate(parts)
        found[f"{split}_cuts"] = np.cumsum([0, *map(len, parts)])
    np.savez_compressed(target, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
