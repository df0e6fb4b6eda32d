"""Word error of a speech model when it is pruned, and after a repair on speech that espeak-ng makes of plain text.

    python benchmarks/encoders/speech.py MODEL SEGMENTS TEXT --espeak espeak-ng

MODEL is a directory of a Whisper model. SEGMENTS is the folder ``librivox`` of Debian's package pocketsphinx-testdata:
WAV files and their ``transcription``; all of them are measured on, and none is calibrated on. TEXT is a plain text file
from which sentences are spoken by several voices; with ``--speech DIR`` the speech is kept, and used if it is there.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoFeatureExtractor, AutoTokenizer

import fxprune
from fxprune.tracer.inputs.media import Medium, read_sound

VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-us+f2", "en-us+m3", "en-gb+f4", "en-gb+m7", "en-gb-x-rp")
CLIPS = 96
PRUNE = "obs{metric=outputs,samples=32,batch=1}"
REPAIR = "compensate{samples=32,batch=1}"
LONGEST = 120
"""Tokens of a transcript."""


def spoken(text: Path, folder: Path, espeak: str) -> None:
    """Make a folder of clips of one to four sentences, with their texts in ``metadata.jsonl``."""
    parts = re.split(r"(?<=[.!?])\s+", " ".join(text.read_text(encoding="utf-8").split()))
    plain = [part for part in parts if 30 < len(part) < 160 and re.fullmatch(r"[A-Za-z ,.'!?;-]+", part)]
    random.Random(0).shuffle(plain)
    folder.mkdir(parents=True)
    rows, at = [], 0
    for number in range(CLIPS):
        said = " ".join(plain[at : at + 1 + number % 4])
        at += 1 + number % 4
        file = f"{number:03}.wav"
        voice, speed = VOICES[number % len(VOICES)], str(130 + 10 * (number % 5))
        subprocess.run([espeak, "-v", voice, "-s", speed, "-w", folder / file, said], check=True)
        rows.append({"file_name": file, "text": said})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def words(text: str) -> list[str]:
    """The words of a text, in small letters, without signs."""
    return re.sub(r"[^a-z' ]", " ", re.sub(r"</?s>", " ", text.lower())).split()


def edits(said: list[str], heard: list[str]) -> int:
    """How many words must be changed, added or left out."""
    row = list(range(len(heard) + 1))
    for place, word in enumerate(said, 1):
        before, row[0] = row[0], place
        for at, other in enumerate(heard, 1):
            before, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, before + (word != other))
    return row[-1]


def word_error(model: Any, source: Path, segments: Path) -> float:
    """Of all segments together."""
    tokenizer, extractor = AutoTokenizer.from_pretrained(source), AutoFeatureExtractor.from_pretrained(source)
    wrong = count = 0
    for line in (segments / "transcription").read_text(encoding="utf-8").splitlines():
        said, _, name = line.rpartition("(")
        sound = read_sound(Medium(name, segments / f"{name.rstrip(') ')}.wav"), extractor.sampling_rate)
        features = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt").input_features
        with torch.no_grad():
            ids = model.generate(features, max_new_tokens=LONGEST)
        wrong += edits(words(said), words(tokenizer.decode(ids[0], skip_special_tokens=True)))
        count += len(words(said))
    return wrong / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("segments", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--espeak", default="espeak-ng", help="the program (default: %(default)s)")
    parser.add_argument("--speech", type=Path, help="where the speech is kept (default: a temporary directory)")
    parser.add_argument("--prune", default=PRUNE, help="default: %(default)s")
    parser.add_argument("--repair", default=REPAIR, help="default: %(default)s")
    parser.add_argument(
        "--target", default="params:0.9", help="size of the result (default: %(default)s); none for ratios"
    )
    options = parser.parse_args()
    target = None if options.target == "none" else options.target
    print(f"{platform.machine()}, {torch.get_num_threads()} threads")
    print("| passes | parameters kept | word error | seconds |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        speech = options.speech or Path(scratch) / "speech"
        if not speech.exists():
            spoken(options.text, speech, options.espeak)
        dense = fxprune.load(options.model).eval().float()
        print(f"| none | 1 | {word_error(dense, options.model, options.segments):.3f} | |", flush=True)
        for passes in (options.prune, f"{options.prune},{options.repair}"):
            started, out = time.perf_counter(), Path(scratch) / "out"
            data = None if passes == options.prune else speech
            applied = fxprune.apply(options.model, passes, target=target, calib=speech, data=data, out=out, force=True)
            seconds = time.perf_counter() - started
            error = word_error(fxprune.load(out).eval().float(), options.model, options.segments)
            print(f"| `{passes}` | {applied.kept:.4f} | {error:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
