"""Rows for operators that are left after decomposition, and for those that no dimension may leave."""

from __future__ import annotations

from .rule_rows import NORM_OPERANDS, Row

VOLUME = "%x: f64[2, 3, 4, 4, 4]"

DECOMPOSED = [
    Row(VOLUME, "aten.max_pool3d_with_indices(%x, [2, 2, 2])", "a b c! d! e! -> a b f! g! h!, a b i! j! k!"),
    Row(VOLUME, "aten._adaptive_avg_pool3d(%x, [2, 2, 2])", "a b c! d! e! -> a b f! g! h!"),
    Row(VOLUME, "aten.adaptive_max_pool3d(%x, [2, 2, 2])", "a b c! d! e! -> a b f! g! h!, a b i! j! k!"),
    Row(VOLUME, "aten.reflection_pad3d(%x, [1, 1, 1, 1, 1, 1])", "a b c! d! e! -> a b f! g! h!"),
    Row(VOLUME, "aten.replication_pad3d(%x, [1, 1, 1, 1, 1, 1])", "a b c! d! e! -> a b f! g! h!"),
    Row(
        "%x: f64[3, 6, 5], %w: f64[6], %b: f64[6]",
        "aten.native_group_norm(%x, %w, %b, 3, 6, 5, 2, 1e-05)",
        "a (b! * c~) d~, (b! * c~), (b! * c~) -> a (b! * c~) d~, a e!, a f!",
    ),
    Row(
        f"%x: f64[3, 6, 5], {NORM_OPERANDS}",
        "aten._native_batch_norm_legit(%x, %w, %b, %m, %v, false, 0.1, 1e-05)",
        "a b c, b, b, b, b -> a b c, d, e",
    ),
    Row(
        "%x: f64[3, 6, 5], %w: f64[6], %b: f64[6]",
        "aten._native_batch_norm_legit.no_stats(%x, %w, %b, true, 0.1, 1e-05)",
        "a~ b c~, b, b -> a~ b c~, b, b",
    ),
    Row("%x: f64[3, 4]", "aten._fft_r2c(%x, [1], 0, true)", "a b! -> a c!"),
    Row("%x: c128[3, 4]", "aten._fft_c2c(%x, [0], 0, true)", "a! b -> c! b"),
    Row("%x: c128[3, 3]", "aten._fft_c2r(%x, [1], 0, 4)", "a b! -> a c!"),
    Row("%x: f64[2, 3, 4], %y: f64[5, 4]", "aten.cdist(%x, %y)", "a b c, d c -> a b d", zeroed=True),
    Row(
        "%x: f64[2, 3, 4], %y: f64[2, 5, 4]",
        "aten._cdist_forward(%x, %y, 2.0, none)",
        "a b c, a d c -> a b d",
        zeroed=True,
    ),
    *(
        Row(
            "%w: f64[5, 4], %i: i64[4], %o: i64[2]",  # drawn offsets that start at 0
            f"aten.{name}(%w, %i, %o)",
            "a! b, c!, d! -> e! b, f!, g!, h!",
        )
        for name in ("embedding_bag", "_embedding_bag")
    ),
    Row("%x: f64[3, 4]", "aten.native_dropout(%x, 0.5, false)", "a b -> a b, a b"),
]

WHOLE = [
    Row("%x: f64[3, 4]", "aten.as_strided(%x, [4, 3], [1, 4])", "a! b! -> c! d!"),
    Row("", "aten.empty_strided([3, 4], [4, 1])", "-> a! b!", random=True),
    Row("%x: f64[3, 4]", "aten.diagonal(%x)", "a! b! -> c!"),
    Row("%x: f64[4]", "aten.diag(%x)", "a! -> b! c!"),
    Row("%x: f64[3, 4]", "aten.diag_embed(%x)", "a! b! -> c! d! e!"),
    Row("%x: f64[3, 4]", "aten.trace(%x)", "a! b! -> ."),
    Row("%x: i64[5]", "aten.bincount(%x)", "a! -> b!"),
    Row("%x: f64[3, 4], %m: b8[3, 4], %y: f64[12]", "aten.masked_scatter(%x, %m, %y)", "a! b!, c! d!, e! -> f! g!"),
    Row("%x: f64[3, 4], %m: b8[3, 4]", "aten.masked_select(%x, %m)", "a! b!, c! d! -> e!"),
    Row("%x: f64[3, 4]", "aten.nonzero(%x)", "a! b! -> c! d!"),
    *(Row("%x: f64[3, 4]", f"aten.{name}(%x)", "a! b! -> c!") for name in ("pdist", "_pdist_forward")),
]
