"""The table of operator rules: one example call per row, and the coupling that its rule must find."""

from __future__ import annotations

from dataclasses import dataclass

QKV = "%q: f64[2, 3, 4, 6], %k: f64[2, 3, 5, 6], %v: f64[2, 3, 5, 7]"
GROUPED = "%q: f64[2, 6, 4, 5], %k: f64[2, 3, 4, 5], %v: f64[2, 3, 4, 7]"
IMAGE = "%x: f64[2, 4, 8, 10]"
NORM_OPERANDS = "%w: f64[6], %b: f64[6], %m: f64[6], %v: f64[6]"


@dataclass(frozen=True)
class Row:
    """One call.

    Attributes:
        operands: as in the header of a graph's text form.
        call: as on the right-hand side of an operator's line.
        terms: axes of the operands, ``->``, axes of the results. Atoms are letters, ``!`` says frozen, ``~``
            normalised; after ``|`` the other marks.
        random: only the shape of the result is certain.
        zeroed: the result depends on all units, and on zeroed ones as if they were not there.
    """

    operands: str
    call: str
    terms: str
    random: bool = False
    zeroed: bool = False


LINEAR = [
    Row(
        "%q: f64[6, 4, 5], %k: f64[6, 3, 5], %v: f64[6, 3, 7]",
        "aten.scaled_dot_product_attention(%q, %k, %v)",
        "a b c, a d~ c, a d~ e -> a b e | a heads, c head_dim, e head_dim",
    ),
    Row("%x: f64[2, 3, 4], %w: f64[5, 4], %b: f64[5]", "aten.linear(%x, %w, %b)", "a b c, d c, d -> a b d"),
    Row("%x: f64[2, 4], %w: f64[5, 4]", "aten.linear(%x, %w)", "a b, c b -> a c"),
    Row("%b: f64[5], %x: f64[3, 4], %w: f64[4, 5]", "aten.addmm(%b, %x, %w)", "a, b c, c a -> b a"),
    Row("%b: f64[3, 5], %x: f64[3, 4], %w: f64[4, 5]", "aten.addmm(%b, %x, %w)", "a b, a c, c b -> a b"),
    Row(
        "%b: f64[1, 3, 5], %x: f64[2, 3, 4], %w: f64[2, 4, 5]",
        "aten.baddbmm(%b, %x, %w)",
        "1 a b, c a d, c d b -> c a b",
    ),
    Row("%x: f64[3, 4], %w: f64[4, 5]", "aten.mm(%x, %w)", "a b, b c -> a c"),
    Row("%x: f64[2, 3, 4], %w: f64[2, 4, 5]", "aten.bmm(%x, %w)", "a b c, a c d -> a b d"),
    Row(
        "%x: f64[2, 3], %y: f64[2, 4], %w: f64[5, 3, 4], %b: f64[5]",
        "aten.bilinear(%x, %y, %w, %b)",
        "a b, a c, d b c, d -> a d",
    ),
    Row("%x: f64[3], %y: f64[4]", "aten.outer(%x, %y)", "a, b -> a b"),
    Row("%w: f64[5, 4], %i: i64[2, 3]", "aten.embedding(%w, %i)", "a! b, c d -> c d b"),
    Row("%x: f64[2, 1, 3, 4], %y: f64[6, 4, 5]", "aten.matmul(%x, %y)", "a 1 b c, d c e -> a d b e"),
    Row("%x: f64[4], %y: f64[6, 4, 5]", "aten.matmul(%x, %y)", "a, b a c -> b c"),
    Row("%x: f64[3, 4], %y: f64[4]", "aten.matmul(%x, %y)", "a b, b -> a"),
    Row("%x: f64[2, 3, 4], %y: f64[2, 5, 4]", 'aten.einsum("bik,bjk->bij", [%x, %y])', "a b c, a d c -> a b d"),
    Row("%x: f64[2, 3, 4], %y: f64[4, 5]", 'aten.einsum("...k, kn", [%x, %y])', "a b c, c d -> a b d"),
    Row("%x: f64[3, 4], %y: f64[4, 5]", 'aten.einsum("ik,kj", [%x, %y])', "a b, b c -> a c"),
    Row(
        QKV,
        "aten.scaled_dot_product_attention(%q, %k, %v)",
        "a b c d, a b e~ d, a b e~ f -> a b c f | b heads, d head_dim, f head_dim",
    ),
    Row(
        f"{QKV}, %m: f64[4, 5]",
        "aten.scaled_dot_product_attention(%q, %k, %v, %m, scale=0.25)",
        "a b c d, a b e~ d, a b e~ f, c e~ -> a b c f | b heads, d head_dim, f head_dim",
    ),
    Row(
        GROUPED,
        "aten.scaled_dot_product_attention(%q, %k, %v, none, 0.0, true, enable_gqa=true)",
        "a (b * c) d! e, a b f!~ e, a b f!~ g -> a (b * c) d! g | b heads, c heads, e head_dim, g head_dim",
    ),
]

REDUCE = [
    *(
        Row("%x: f64[3, 4]", f"aten.{name}(%x, {dims}, true)", terms)
        for terms, calls in {
            "a b -> a 1": {"sum.dim_IntList": "[-1]", "nansum": "[-1]", "any.dim": "1"},
            "a b~ -> a 1": {
                "mean.dim": "[1]",
                "amax": "[1]",
                "amin": "[1]",
                "all.dim": "1",
                "prod.dim_int": "1",
                "logsumexp": "[1]",
                "std.dim": "[1], true",
                "var.dim": "[1], true",
            },
            "a b~ -> a 1, a 1": {"var_mean.dim": "[1], true", "std_mean.dim": "[1], true"},
            "a b! -> a 1": {"argmax": "1", "argmin": "1"},
            "a b! -> a 1, a 1": {"max.dim": "1", "min.dim": "1"},
        }.items()
        for name, dims in calls.items()
    ),
    Row("%x: f64[3, 4]", "aten.var.correction(%x, [1], correction=1)", "a b~ -> a"),
    Row("%x: f64[3, 4]", "aten.var(%x, true)", "a~ b~ -> ."),
    Row("%x: f64[3, 4]", "aten.sum(%x)", "a b -> ."),
    Row("%x: f64[3, 4]", "aten.argmax(%x)", "a! b! -> ."),
    Row("%x: f64[3, 4]", "aten.max(%x)", "a~ b~ -> ."),
    Row("%x: f64[3, 4], %y: f64[4]", "aten.max.other(%x, %y)", "a b, b -> a b"),
    Row("%x: f64[3, 4], %y: f64[4]", "aten.min.other(%x, %y)", "a b, b -> a b"),
    Row("%x: f64[3, 4]", "aten.linalg_vector_norm(%x, 2, [1])", "a b -> a"),
    Row("%x: f64[3, 4]", "aten.linalg_vector_norm(%x, -1, [1])", "a b~ -> a"),
    Row("%x: f64[3, 4]", "aten.norm.ScalarOpt_dim(%x, 2, [1])", "a b -> a"),
    Row("%x: f64[3, 4]", "aten.linalg_norm(%x, 2, [1])", "a b -> a"),
    Row("%x: f64[3, 4]", "aten.linalg_norm(%x, none, [1], true)", "a b -> a 1"),
    Row("%v: f64[4, 5, 3], %g: f64[1, 1, 3]", "aten._weight_norm(%v, %g, 2)", "a b c~, 1 1 c~ -> a b c~", zeroed=True),
    Row("%v: f64[4, 5], %g: f64[4, 1]", "aten._weight_norm(%v, %g)", "a~ b, a~ 1 -> a~ b", zeroed=True),
    *(
        Row("%x: f64[3, 4]", f"aten.fft_{name}(%x, none, {dims})", terms)
        for name, dims, terms in (
            ("fft", -1, "a b! -> a c!"),
            ("ifft", -1, "a b! -> a c!"),
            ("rfft", 1, "a b! -> a c!"),
            ("irfft", 0, "a! b -> c! b"),
            ("hfft", 1, "a b! -> a c!"),
            ("ihfft", 1, "a b! -> a c!"),
            ("fft2", [0, 1], "a! b! -> c! d!"),
            ("ifft2", [0, 1], "a! b! -> c! d!"),
            ("rfft2", [0, 1], "a! b! -> c! d!"),
            ("irfft2", [0, 1], "a! b! -> c! d!"),
            ("fftn", [1], "a b! -> a c!"),
            ("ifftn", [1], "a b! -> a c!"),
            ("rfftn", [1], "a b! -> a c!"),
            ("irfftn", [1], "a b! -> a c!"),
        )
    ),
    Row("%x: f64[3, 4]", "aten.fft_fftn(%x)", "a! b! -> c! d!"),
    Row("%x: f64[2, 3, 4]", "aten.fft_ifft2(%x)", "a b! c! -> a d! e!"),
    Row("%x: f64[3, 4]", "aten.fft_fft(%x)", "a b! -> a c!"),
    Row("%x: f64[3, 4]", "aten.softmax.int(%x, -1)", "a b~ -> a b~"),
    Row("%x: f64[2, 3, 4, 5]", "aten.softmax.int(%x, -1)", "a b c d~ -> a b c d~ | b heads"),
    Row("%x: f64[2, 3, 2, 4, 5]", "aten.softmax.int(%x, -1)", "a b c d e~ -> a b c d e~ | b heads, c heads"),
    Row("%x: f64[6, 4, 5]", "aten.softmax.int(%x, -1)", "a b c~ -> a b c~ | a heads"),
    Row("%x: f64[3, 4]", "aten.log_softmax.int(%x, 1)", "a b~ -> a b~"),
    Row("%x: f64[3, 4]", "aten._softmax(%x, 1, false)", "a b~ -> a b~"),
    Row("%x: f64[3, 4]", "aten._log_softmax(%x, 1, false)", "a b~ -> a b~"),
    Row("%x: f64[3, 4]", "aten._safe_softmax(%x, 1)", "a b~ -> a b~"),
    Row("%x: f64[3, 2, 6], %w: f64[6], %b: f64[6]", "aten.layer_norm(%x, [6], %w, %b)", "a b c~, c~, c~ -> a b c~"),
    Row("%x: f64[3, 2, 6]", "aten.layer_norm(%x, [2, 6])", "a b~ c~ -> a b~ c~"),
    Row(
        "%x: f64[3, 6], %w: f64[6], %b: f64[6]",
        "aten.native_layer_norm(%x, [6], %w, %b, 1e-05)",
        "a b~, b~, b~ -> a b~, a 1, a 1",
    ),
    Row("%x: f64[3, 6], %w: f64[6]", "aten.rms_norm(%x, [6], %w)", "a b~, b~ -> a b~"),
    Row(
        f"%x: f64[3, 6, 5], {NORM_OPERANDS}",
        "aten.batch_norm(%x, %w, %b, %m, %v, false, 0.1, 1e-05, false)",
        "a b c, b, b, b, b -> a b c",
    ),
    Row(
        "%x: f64[3, 6, 5]", "aten.batch_norm(%x, none, none, none, none, true, 0.1, 1e-05, false)", "a~ b c~ -> a~ b c~"
    ),
    Row(
        f"%x: f64[3, 6], {NORM_OPERANDS}",
        "aten._native_batch_norm_legit_no_training(%x, %w, %b, %m, %v, 0.1, 1e-05)",
        "a b, b, b, b, b -> a b, c, d",
    ),
    Row(
        f"%x: f64[3, 6, 5], {NORM_OPERANDS}",
        "aten.instance_norm(%x, %w, %b, %m, %v, true, 0.1, 1e-05, false)",
        "a b c~, b, b, b, b -> a b c~",
    ),
    Row("%x: f64[3, 6, 5], %w: f64[6]", "aten.prelu(%x, %w)", "a b c, b -> a b c"),
    Row("%x: f64[3, 6, 5], %w: f64[1]", "aten.prelu(%x, %w)", "a b c, 1 -> a b c"),
    Row("%x: f64[6], %w: f64[1]", "aten.prelu(%x, %w)", "a, 1 -> a"),
    Row(
        "%x: f64[2, 6, 5], %w: f64[6], %b: f64[6]",
        "aten.group_norm(%x, 2, %w, %b)",
        "a (b! * c~) d~, (b! * c~), (b! * c~) -> a (b! * c~) d~",
    ),
    *(
        Row("%x: f64[3, 4]", f"aten.{name}(%x, 1)", terms)
        for name, terms in {
            "cumsum": "a b! -> a b!",
            "cumprod": "a b! -> a b!",
            "logcumsumexp": "a b! -> a b!",
            "cummax": "a b! -> a b!, a b!",
            "cummin": "a b! -> a b!, a b!",
        }.items()
    ),
    Row("%x: f64[3, 4]", "aten.sort(%x)", "a b! -> a b!, a b!"),
    Row("%x: f64[3, 4]", "aten.sort.stable(%x, stable=true, dim=0)", "a! b -> a! b, a! b"),
    Row("%x: f64[3, 4]", "aten.argsort(%x, 0)", "a! b -> a! b"),
    Row("%x: f64[3, 4]", "aten.topk(%x, 1)", "a b~ -> a 1, a 1 | b experts"),
    Row("%x: f64[3, 8]", "aten.glu(%x)", "a (b + b) -> a b"),
]

SHAPE = [
    Row("%x: f64[2, 12]", "aten.view(%x, [2, 3, 4])", "a (b * c) -> a b c"),
    Row("%x: f64[2, 3, 4]", "aten.view(%x, [2, -1])", "a b c -> a (b * c)"),
    Row("%x: f64[2, 4]", "aten.view.dtype(%x, i64)", "a b -> a b"),
    Row("%x: f64[2, 4]", "aten.view.dtype(%x, i32)", "a b! -> a c!"),
    Row("%x: f64[2, 12]", "aten.reshape(%x, [2, 3, 4])", "a (b * c) -> a b c"),
    Row("%x: f64[4, 6]", "aten.reshape(%x, [6, 4])", "a! (b! * c) -> d! (e! * c)"),
    Row("%x: f64[2, 4, 9]", "aten.reshape(%x, [2, 6, 6])", "a b! (c! * d) -> a e! (f! * d)"),
    Row("%x: f64[4, 3]", "aten.reshape(%x, [3, 4])", "a! b! -> c! d!"),
    Row("%x: f64[0, 6]", "aten.reshape(%x, [6, 0])", "a! b! -> c! d!"),
    Row("%x: f64[2, 12]", "aten._unsafe_view(%x, [2, 3, 4])", "a (b * c) -> a b c"),
    Row("%x: f64[2, 12]", "aten._reshape_alias(%x, [2, 3, 4], [12, 4, 1])", "a (b * c) -> a b c"),
    Row("%x: f64[2, 3, 4]", "aten.flatten.using_ints(%x, 1)", "a b c -> a (b * c)"),
    Row("%x: f64[2, 3, 4]", "aten.ravel(%x)", "a b c -> (a * b * c)"),
    Row("%x: f64[2, 1, 4]", "aten.squeeze(%x)", "a 1 b -> a b"),
    Row("%x: f64[2, 1, 4]", "aten.squeeze.dim(%x, 0)", "a 1 b -> a 1 b"),
    Row("%x: f64[2, 4]", "aten.unsqueeze(%x, 1)", "a b -> a 1 b"),
    Row("%x: f64[2, 12], %y: f64[2, 3, 4]", "aten.view_as(%x, %y)", "a (b * c), a b c -> a b c"),
    Row("%x: f64[2, 12], %y: f64[2, 3, 4]", "aten.reshape_as(%x, %y)", "a (b * c), a b c -> a b c"),
    Row("%x: f64[2, 12]", "aten.unflatten.int(%x, 1, [3, 4])", "a (b * c) -> a b c"),
    Row("%x: f64[2, 3, 4]", "aten.permute(%x, [2, 0, -2])", "a b c -> c a b"),
    Row("%x: f64[2, 3, 4]", "aten.transpose.int(%x, 1, -1)", "a b c -> a c b"),
    Row("%x: f64[2, 3, 4]", "aten.swapaxes(%x, 1, -1)", "a b c -> a c b"),
    Row("%x: f64[2, 3, 4]", "aten.swapdims(%x, 1, -1)", "a b c -> a c b"),
    Row("%x: f64[3, 4]", "aten.t(%x)", "a b -> b a"),
    Row("%x: f64[2, 3, 4]", "aten.mT(%x)", "a b c -> a c b"),
    Row("%x: f64[3, 4]", "aten.numpy_T(%x)", "a b -> b a"),
    Row("%x: f64[2, 3, 4]", "aten.adjoint(%x)", "a b c -> a c b"),
    Row("%x: f64[2, 3, 4]", "aten.movedim.int(%x, 0, -1)", "a b c -> b c a"),
    Row("%x: f64[2, 3, 4]", "aten.moveaxis.intlist(%x, [0, 1], [2, 0])", "a b c -> b c a"),
    Row("%x: f64[3, 1]", "aten.expand(%x, [2, -1, 4])", "a 1 -> b a c"),
    Row("%x: f64[3, 1], %y: f64[2, 3, 4]", "aten.expand_as(%x, %y)", "a 1, b a c -> b a c"),
    Row("%x: f64[3, 1]", "aten.broadcast_to(%x, [3, 4])", "a 1 -> a b"),
    Row("%x: f64[3, 1], %y: f64[2, 1, 4]", "aten.broadcast_tensors([%x, %y])", "a 1, b 1 c -> b a c, b a c"),
    Row("%x: f64[3, 4]", "aten.repeat(%x, [2, 1, 5])", "a b -> c a (d * b)"),
    Row("%x: f64[3, 4]", "aten.tile(%x, [5])", "a b -> a (c * b)"),
    Row("%x: f64[3, 4]", "aten.repeat_interleave.self_int(%x, 5, 1)", "a b -> a (b * c)"),
    Row("%x: f64[3, 4]", "aten.repeat_interleave.self_int(%x, 5, 1, output_size=20)", "a b -> a (b * c)"),
    Row("%x: f64[3, 4]", "aten.repeat_interleave.self_int(%x, 5)", "a! b! -> c!"),
    Row("%x: f64[3, 4]", "aten.flip(%x, [-1])", "a b! -> a b!"),
    Row("%x: f64[3, 4]", "aten.roll(%x, [1], [1])", "a b! -> a b!"),
    Row("%x: f64[3, 4]", "aten.roll(%x, [1])", "a! b! -> a! b!"),
    Row("%x: c128[3, 4]", "aten.view_as_real(%x)", "a b -> a b c!"),
    Row("%x: f64[3, 4, 2]", "aten.view_as_complex(%x)", "a b c! -> a b"),
]

SLICING = [
    Row("%x: f64[2, 3], %y: f64[2, 4], %z: f64[2, 3]", "aten.cat([%x, %y, %z], 1)", "a b, a c, a d -> a (b + c + d)"),
    Row("%x: f64[2, 3], %y: f64[2, 3]", "aten.concat([%x, %y])", "a b, c b -> (a + c) b"),
    Row("%x: f64[2, 3], %y: f64[2, 3]", "aten.concatenate([%x, %y])", "a b, c b -> (a + c) b"),
    Row("%x: f64[4], %y: f64[4]", "aten.stack([%x, %y], -1)", "a, a -> a (1 + 1)"),
    Row("%x: f64[2, 4]", "aten.unbind.int(%x)", "(1 + 1) a -> a, a"),
    Row("%x: f64[2, 10]", "aten.split.Tensor(%x, 4, 1)", "a (b + c + d) -> a b, a c, a d"),
    Row("%x: f64[2, 10]", "aten.split_with_sizes(%x, [3, 3, 4], -1)", "a (b + c + d) -> a b, a c, a d"),
    Row("%x: f64[10, 2]", "aten.chunk(%x, 2)", "(a + b) c -> a c, b c"),
    Row("%x: f64[2, 10]", "aten.tensor_split.sections(%x, 3, 1)", "a (b + c + d) -> a b, a c, a d"),
    Row("%x: f64[2, 10]", "aten.slice.Tensor(%x, 1, 0, 9223372036854775807)", "a b -> a b"),
    Row("%x: f64[2, 10]", "aten.slice.Tensor(%x, 1, 3, 7)", "a (b + c + d) -> a c"),
    Row("%x: f64[2, 10]", "aten.slice.Tensor(%x, 1, -4, 9223372036854775807)", "a (b + c) -> a c"),
    Row("%x: f64[2, 10]", "aten.slice.Tensor(%x, 1, 7, 3)", "a b -> a c"),
    Row("%x: f64[2, 10]", "aten.slice.Tensor(%x, 1, 1, 9223372036854775807, 2)", "a (b * c!) -> a b"),
    Row("%x: f64[2, 10]", "aten.slice.Tensor(%x, 1, 0, 10, 3)", "a b! -> a c!"),
    Row("%x: f64[2, 10]", "aten.narrow(%x, 1, 3, 4)", "a (b + c + d) -> a c"),
    Row("%x: f64[2, 10]", "aten.narrow(%x, 1, -4, 4)", "a (b + c) -> a c"),
    Row("%x: f64[2, 10]", "aten.select.int(%x, 1, -4)", "a (b + 1 + c) -> a"),
    Row("%x: f64[3, 4]", "aten.constant_pad_nd(%x, [2, 3], 1.5)", "a b -> a (c + b + d)"),
    Row("%x: f64[3, 4]", "aten.constant_pad_nd(%x, [-1, 2])", "a b! -> a c!"),
    Row("%x: f64[3, 4]", "aten.pad(%x, [0, 0, 2, 0])", "a b -> (c + a) b"),
    Row("%x: f64[2, 3, 4]", 'aten.pad(%x, [1, 1], "reflect")', "a b c! -> a b d!"),
    Row("%x: f64[3, 4, 5], %i: i64[2, 6]", "aten.index.Tensor(%x, [none, %i])", "a b! c, d e -> a d e c"),
    Row("%x: f64[3, 4, 5], %i: i64[6], %j: i64[6]", "aten.index.Tensor(%x, [%i, none, %j])", "a! b c!, d, d -> d b"),
    Row("%x: f64[3, 4], %m: b8[3]", "aten.index.Tensor(%x, [%m])", "a! b!, c! -> 1 d!"),
    Row("%x: f64[3, 4], %i: i64[6]", "aten.index_select(%x, 1, %i)", "a b!, c! -> a c!"),
    Row("%x: f64[3, 4], %i: i64[3, 6]", "aten.gather(%x, 1, %i)", "a b!, a c! -> a d!"),
    Row("%x: f64[3, 4], %i: i64[3, 6]", "aten.take_along_dim(%x, %i, 1)", "a b!, a c! -> a d!"),
    Row("%x: f64[3, 4], %i: i64[1, 6]", "aten.take_along_dim(%x, %i, -1)", "a b!, 1 c! -> a d!"),
    Row("%x: f64[3, 4], %i: i64[5]", "aten.take_along_dim(%x, %i)", "a! b!, c! -> d!"),
    Row("%x: f64[3, 4], %i: i64[2, 6]", "aten.gather(%x, 1, %i)", "a! b!, c! d! -> e! f!"),
    Row("%x: f64[3, 4], %i: i64[3, 6], %y: f64[3, 6]", "aten.scatter.src(%x, 1, %i, %y)", "a b!, a c!, a d! -> a e!"),
    Row("%x: f64[3, 4], %i: i64[3, 6]", "aten.scatter.value(%x, 1, %i, 1.0)", "a b!, a c! -> a d!"),
    Row("%x: f64[3, 4], %i: i64[3, 6], %y: f64[3, 6]", "aten.scatter_add(%x, 1, %i, %y)", "a b!, a c!, a d! -> a e!"),
    Row(
        "%x: f64[3, 4], %i: i64[3, 6], %y: f64[3, 6]",
        'aten.scatter_reduce.two(%x, 1, %i, %y, "amax")',
        "a b!, a c!, a d! -> a e!",
    ),
    Row("%x: f64[3, 7, 4]", "aten.unfold(%x, 1, 3, 2)", "a b! c -> a d! c e!"),
    Row(
        "%x: f64[3, 4, 5], %i: i64[6], %y: f64[6, 4, 5]", "aten.index_put(%x, [%i], %y)", "a! b c, d!, e! b c -> a! b c"
    ),
    Row(
        "%x: f64[3, 4, 5], %i: i64[6], %y: f64[3, 6, 5]",
        "aten.index_put(%x, [none, %i], %y)",
        "a! b! c, d!, e! f! c -> a! b! c",
    ),
    Row("%x: f64[3, 4, 5], %i: i64[6], %y: f64[5]", "aten.index_put(%x, [%i], %y)", "a! b! c!, d!, e! -> a! b! c!"),
    Row(
        "%x: f64[3, 4, 5], %m: b8[3, 4], %y: f64[5]", "aten.index_put(%x, [%m], %y)", "a! b! c!, d! e!, f! -> a! b! c!"
    ),
]

CREATION = [
    Row("", "aten.zeros([3, 4])", "-> a b"),
    Row("", "aten.ones([3, 4])", "-> a b"),
    Row("", "aten.full([3, 4], 1.5)", "-> a b"),
    *(Row("", f"aten.{name}([3, 4])", "-> a b", random=True) for name in ("empty.memory_format", "rand", "randn")),
    Row("%x: f64[2]", "aten.new_zeros(%x, [3, 4])", "a -> b c"),
    Row("%x: f64[2]", "aten.new_ones(%x, [3, 4])", "a -> b c"),
    Row("%x: f64[2]", "aten.new_full(%x, [3, 4], 1.5)", "a -> b c"),
    Row("%x: f64[2]", "aten.new_empty(%x, [3, 4])", "a -> b c", random=True),
    Row("%x: f64[2, 3, 4]", "aten.tril(%x, 1)", "a b! c! -> a b! c!"),
    Row("%x: f64[2, 3, 4]", "aten.triu(%x)", "a b! c! -> a b! c!"),
    Row("%x: i64[2, 3]", "aten.one_hot(%x, 5)", "a b -> a b c!"),
]

WRITING = [
    Row("%x: f64[2, 10], %y: f64[2, 4]", "aten.slice_scatter(%x, %y, 1, 3, 7)", "a (b + c + d), a c -> a (b + c + d)"),
    Row("%x: f64[2, 10], %y: f64[2, 10]", "aten.slice_scatter(%x, %y, 1)", "a b, a b -> a b"),
    Row("%x: f64[2, 10], %y: f64[2]", "aten.select_scatter(%x, %y, 1, -4)", "a (b + 1 + c), a -> a (b + 1 + c)"),
    Row("%x: f64[2, 3], %y: f64[3]", "aten.copy(%x, %y)", "a b, b -> a b"),
]

ROWS = [*LINEAR, *REDUCE, *SHAPE, *SLICING, *WRITING, *CREATION]
