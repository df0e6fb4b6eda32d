"""Vectors of texts by sentence-transformers. The job has ``directory``, ``own_code`` and ``texts``."""

import json
import sys

import decoding
import sentence_transformers


def main() -> None:
    job = decoding.read_job()
    model = sentence_transformers.SentenceTransformer(
        job["directory"], trust_remote_code=job["own_code"], device="cpu", local_files_only=True
    )
    found = model.encode(job["texts"], batch_size=2).tolist()
    kinds = [type(module).__name__ for module in model]
    print("\n" + json.dumps({"version": sentence_transformers.__version__, "modules": kinds, "vectors": found}))


if __name__ == "__main__":
    sys.exit(main())
