"""Rows for convolutions, pooling, resampling and the rearrangement of pixels and channels."""

from __future__ import annotations

from .rule_rows import Row

CONVOLUTION = [
    Row("%x: f64[2, 4, 7], %w: f64[6, 4, 3], %b: f64[6]", "aten.conv1d(%x, %w, %b)", "a b c!, d b e!, d -> a d f!"),
    Row(
        "%x: f64[4, 5, 7], %w: f64[6, 4, 3, 3]",
        'aten.conv2d.padding(%x, %w, none, [1, 1], "same")',
        "a b! c!, d a e! f! -> d g! h!",
    ),
    Row(
        "%x: f64[2, 4, 5, 7], %w: f64[6, 2, 3, 3]",
        "aten.conv2d(%x, %w, none, [1, 1], [0, 0], [1, 1], 2)",
        "a (b * c) d! e!, (b * f) c g! h! -> a (b * f) i! j!",
    ),
    Row(
        "%x: f64[2, 4, 5, 7], %w: f64[4, 1, 3, 3]",
        "aten.conv2d(%x, %w, none, [1, 1], [0, 0], [1, 1], 4)",
        "a b c! d!, b 1 e! f! -> a b g! h!",
    ),
    Row(
        "%x: f64[2, 4, 3, 3, 3], %w: f64[5, 4, 2, 2, 2]",
        "aten.conv3d(%x, %w)",
        "a b c! d! e!, f b g! h! i! -> a f j! k! l!",
    ),
    Row(
        "%x: f64[2, 4, 7], %w: f64[6, 2, 3], %b: f64[6]",
        "aten.convolution(%x, %w, %b, [1], [0], [1], false, [0], 2)",
        "a (b * c) d!, (b * e) c f!, (b * e) -> a (b * e) g!",
    ),
    Row(
        "%x: f64[2, 4, 7], %w: f64[4, 3, 3], %b: f64[6]",
        "aten.convolution(%x, %w, %b, [1], [0], [1], true, [0], 2)",
        "a (b * c) d!, (b * c) e f!, (b * e) -> a (b * e) g!",
    ),
    Row(
        "%x: f64[2, 4, 7], %w: f64[4, 5, 3], %b: f64[5]",
        "aten.conv_transpose1d(%x, %w, %b)",
        "a b c!, b d e!, d -> a d f!",
    ),
    Row(
        "%x: f64[2, 4, 5, 7], %w: f64[4, 3, 2, 2], %b: f64[6]",
        "aten.conv_transpose2d.input(%x, %w, %b, [2, 2], [0, 0], [0, 0], 2)",
        "a (b * c) d! e!, (b * c) f g! h!, (b * f) -> a (b * f) i! j!",
    ),
    Row(
        "%x: f64[2, 4, 3, 3, 3], %w: f64[4, 5, 2, 2, 2]",
        "aten.conv_transpose3d.input(%x, %w)",
        "a b c! d! e!, b f g! h! i! -> a f j! k! l!",
    ),
    *(
        Row(operands, f"aten.{call}", terms)
        for (operands, terms), calls in {
            ("%x: f64[2, 4, 6]", "a b c! -> a b d!"): (
                "avg_pool1d(%x, [2])",
                "max_pool1d(%x, [2])",
                "adaptive_avg_pool1d(%x, [3])",
                "upsample_nearest1d(%x, [12])",
                "upsample_linear1d(%x, [12], false)",
                "reflection_pad1d(%x, [1, 2])",
                "replication_pad1d(%x, [1, 2])",
            ),
            ("%x: f64[2, 4, 6]", "a b c! -> a b d!, a b e!"): ("adaptive_max_pool1d(%x, [3])",),
            ("%x: f64[2, 4, 6, 6]", "a b c! d! -> a b e! f!"): (
                "avg_pool2d(%x, [2, 2])",
                "max_pool2d(%x, [2, 2])",
                "adaptive_avg_pool2d(%x, [3, 3])",
                "_adaptive_avg_pool2d(%x, [3, 3])",
                "upsample_nearest2d(%x, [12, 12])",
                "upsample_nearest2d.vec(%x, none, [2.0, 2.0])",
                "upsample_bilinear2d(%x, [12, 12], false)",
                "upsample_bicubic2d(%x, [12, 12], false)",
                "_upsample_bilinear2d_aa(%x, [12, 12], false)",
                "_upsample_bicubic2d_aa(%x, [12, 12], false)",
                "_upsample_nearest_exact2d(%x, [12, 12])",
                "reflection_pad2d(%x, [1, 2, 1, 1])",
                "replication_pad2d(%x, [1, 2, 1, 1])",
            ),
            ("%x: f64[2, 4, 6, 6]", "a b c! d! -> a b e! f!, a b g! h!"): (
                "max_pool2d_with_indices(%x, [2, 2])",
                "adaptive_max_pool2d(%x, [3, 3])",
            ),
            ("%x: f64[4, 6, 6]", "a b! c! -> a d! e!"): ("max_pool2d(%x, [2, 2])",),
            ("%x: f64[2, 4, 4, 4, 4]", "a b c! d! e! -> a b f! g! h!"): (
                "avg_pool3d(%x, [2, 2, 2])",
                "max_pool3d(%x, [2, 2, 2])",
                "adaptive_avg_pool3d(%x, [3, 3, 3])",
                "upsample_nearest3d(%x, [6, 6, 6])",
                "upsample_trilinear3d(%x, [6, 6, 6], false)",
            ),
        }.items()
        for call in calls
    ),
    Row("%x: f64[2, 4, 6, 6]", "aten.avg_pool2d(%x, [2, 1], [2, 1])", "a b c! d -> a b e! d"),
    Row("%x: f64[2, 4, 6, 6]", "aten.max_pool2d(%x, [1, 2], [1, 2])", "a b c d! -> a b c e!"),
    Row("%x: f64[2, 4, 6, 6]", "aten.avg_pool2d(%x, [2, 1])", "a b c! d -> a b e! d"),
    Row("%x: f64[2, 4, 6, 6]", "aten.avg_pool2d(%x, [2, 1], 1)", "a b c! d -> a b e! d"),
    Row("%x: f64[2, 4, 6, 6]", "aten.avg_pool2d(%x, [1, 1], [2, 1])", "a b c! d -> a b e! d"),
    Row(
        "%x: f64[2, 4, 6, 6]",
        "aten.max_pool2d_with_indices(%x, [2, 1], [2, 1])",
        "a b c! d! -> a b e! f!, a b g! h!",
    ),
    Row(
        "%x: f64[2, 4, 5, 5], %g: f64[2, 3, 3, 2]",
        "aten.grid_sampler(%x, %g, 0, 0, false)",
        "a b c! d!, a e! f! g! -> a b h! i!",
    ),
    Row(
        "%x: f64[2, 4, 5, 5], %g: f64[2, 3, 3, 2]",
        "aten.grid_sampler_2d(%x, %g, 0, 0, false)",
        "a b c! d!, a e! f! g! -> a b h! i!",
    ),
    Row("%x: f64[2, 4, 5, 5]", "aten.im2col(%x, [2, 2], [1, 1], [0, 0], [1, 1])", "a b c! d! -> a (b * e!) f!"),
    Row("%x: f64[4, 5, 5]", "aten.im2col(%x, [2, 2], [1, 1], [0, 0], [1, 1])", "a b! c! -> (a * d!) e!"),
    Row(
        "%x: f64[2, 12, 9]",
        "aten.col2im(%x, [4, 4], [2, 2], [1, 1], [0, 0], [1, 1])",
        "a (b * c!) d! -> a b e! f!",
    ),
    Row("%x: f64[2, 12, 5, 5]", "aten.pixel_shuffle(%x, 2)", "a (b * c!) d! e! -> a b f! g!"),
    Row("%x: f64[2, 3, 6, 6]", "aten.pixel_unshuffle(%x, 2)", "a b c! d! -> a (b * e!) f! g!"),
    Row("%x: f64[2, 6, 5, 5]", "aten.channel_shuffle(%x, 2)", "a (b! * c) d e -> a (c * b!) d e"),
]
