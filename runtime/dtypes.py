"""The data types of the IR in torch."""

from __future__ import annotations

import torch

DTYPES = {
    "f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8,
    "b8": torch.bool, "c64": torch.complex64, "c128": torch.complex128,
}  # fmt: skip
"""Short name, as in the text form, -> torch's type."""

SHORT_NAMES = {dtype: name for name, dtype in DTYPES.items()}
