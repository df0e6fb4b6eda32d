"""A script that loads a GGUF file with llama.cpp, by the package xllamacpp alone, and decodes. It is never imported.

It runs in a Python process of its own: llama.cpp ends its process when it meets what it did not expect. It reads a JSON
object from standard input: ``file``; ``threads``; ``prompt``, token ids; ``expected``, the ids that should follow;
``texts``, to be cut into tokens. The last line of its output is a JSON object: ``steps``, for each expected token null,
or the token that is most likely, its log-probability, and that of the expected one (null where it is not among the
first :data:`CANDIDATES`); and ``tokens``, the ids of each text, or null where llama.cpp refuses it.
"""

import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from typing import Any

sys.modules["fxprune"] = None  # type: ignore[assignment]  # importing it is an error from here on
os.environ["GGML_NO_BACKTRACE"] = "1"  # a debugger would be started to show where it ended

import xllamacpp  # noqa: E402

CANDIDATES = 8
SPARE_POSITIONS = 8


def load(file: str, positions: int, threads: int, key: str) -> Any:
    """A server of one slot, all of it in float32, that nobody else can ask."""
    asked = xllamacpp.CommonParams()
    asked.model.path = file
    asked.n_ctx, asked.n_parallel, asked.n_gpu_layers = positions, 1, 0
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = threads
    asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    asked.warmup, asked.fit_params, asked.verbosity = False, False, 1
    asked.api_keys = [key]
    return xllamacpp.Server(asked)


def steps(server: Any, prompt: list[int], expected: list[int]) -> list[list[Any] | None]:
    """What llama.cpp says at each place where a token is expected. It keeps what it has read, and goes on with what was
    expected. It tells nothing of a token that ends within a character."""
    found: list[list[Any] | None] = []
    for number, wanted in enumerate(expected):
        asked = {"prompt": prompt + expected[:number], "max_tokens": 1, "temperature": 0, "logprobs": CANDIDATES}
        answer = server.handle_completions(asked)
        if "choices" not in answer:
            raise SystemExit(str(answer.get("message", answer)))
        told = (answer["choices"][0].get("logprobs") or {}).get("content")
        likely = {one["id"]: one["logprob"] for one in told[0]["top_logprobs"]} if told else {}
        best = max(likely, key=lambda token: likely[token], default=None)
        found.append(None if best is None else [best, likely[best], likely.get(wanted)])
    return found


def tokens(server: Any, text: str, key: str) -> Any:
    """The ids of a text, with those that stand around every text."""
    body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{server.listening_address}/tokenize", body, headers)
        ) as answer:
            return json.load(answer)["tokens"]
    except urllib.error.HTTPError:
        return None


request = json.loads(sys.stdin.read())
secret = secrets.token_hex(16)
room = len(request["prompt"]) + len(request["expected"]) + SPARE_POSITIONS
running = load(request["file"], room, request["threads"], secret)
report = {
    "steps": steps(running, request["prompt"], request["expected"]),
    "tokens": [tokens(running, text, secret) for text in request["texts"]],
}
print(json.dumps(report), flush=True)
os._exit(0)  # its threads need not end one by one
