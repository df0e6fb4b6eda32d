"""Rows for operators on matrices, for products with vectors and for fake quantisation; as in ``rule_rows``."""

from __future__ import annotations

from .rule_rows import Row

BATCH = "%x: f64[3, 2, 2]"
SYSTEM = "%a: f64[3, 2, 2], %b: f64[3, 2, 5]"

MATRICES = [
    *(
        Row(BATCH, f"aten.{name}(%x)", terms)
        for terms, names in {
            "a b! c! -> a d! e!": "linalg_inv linalg_matrix_exp matrix_exp inverse pinverse cholesky_inverse",
            "a b! c! -> a d! e!, a": "linalg_cholesky_ex linalg_inv_ex",
            "a b! c! -> a": "linalg_det linalg_cond det logdet",
            "a b! c! -> a, a": "linalg_slogdet slogdet",
            "a b! c! -> a d!, a e! f!": "linalg_eigh linalg_eig",
            "a b! c! -> a d!": "linalg_eigvals linalg_eigvalsh linalg_svdvals",
            "a b! c! -> a d! e!, a f!": "linalg_lu_factor linalg_ldl_factor",
            "a b! c! -> a d! e!, a f!, a": "linalg_lu_factor_ex linalg_ldl_factor_ex",
            "a b! c! -> a d! e!, a f! g!, a h! i!": "linalg_lu",
            "a b! c! -> a d! e!, a f! g!": "linalg_qr qr",
            "a b! c! -> a d! e!, a f!, a g! h!": "linalg_svd svd",
        }.items()
        for name in names.split()
    ),
    *(Row(BATCH, f"aten.{name}(%x, 3)", "a b! c! -> a d! e!") for name in ("linalg_matrix_power", "matrix_power")),
    Row(BATCH, "aten.linalg_pinv.atol_rtol_float(%x)", "a b! c! -> a d! e!"),
    Row("%x: f64[4, 3, 2]", "aten.linalg_svdvals(%x)", "a b! c! -> a d!"),
    Row("%x: f64[4, 3, 2], %t: f64[4, 2]", "aten.linalg_householder_product(%x, %t)", "a b! c!, a d! -> a e! f!"),
    *(Row("%x: f64[3, 1, 1]", f"aten.{name}(%x)", "a 1 1 -> a 1 1") for name in ("linalg_cholesky", "cholesky")),
    Row(BATCH, "aten.linalg_matrix_rank.atol_rtol_float(%x)", "a b! c! -> a"),
    Row("%x: f64[2, 2]", "aten.linalg_det(%x)", "a! b! -> ."),
    Row(SYSTEM, "aten.linalg_solve(%a, %b)", "a b! c!, a d! e -> a f! e"),
    Row("%a: f64[3, 2, 2], %b: f64[3, 5, 2]", "aten.linalg_solve(%a, %b, left=false)", "a b! c!, a d e! -> a d f!"),
    Row("%a: f64[3, 2, 2], %b: f64[3, 2]", "aten.linalg_solve(%a, %b)", "a b! c!, a d! -> a e!"),
    Row("%a: f64[3, 2, 2], %b: f64[2]", "aten.linalg_solve(%a, %b)", "a b! c!, d! -> a e!"),
    Row(SYSTEM, "aten.linalg_solve_ex(%a, %b)", "a b! c!, a d! e -> a f! e, a"),
    Row(SYSTEM, "aten.linalg_solve_triangular(%a, %b, upper=true)", "a b! c!, a d! e -> a f! e"),
    Row("%b: f64[3, 2, 5], %a: f64[3, 2, 2]", "aten.triangular_solve(%b, %a)", "a b! c, a d! e! -> a f! c, a g! h!"),
    Row("%b: f64[3, 2, 5], %a: f64[3, 2, 2]", "aten.cholesky_solve(%b, %a)", "a b! c, a d! e! -> a f! c"),
    Row("%x: f64[2, 3, 4]", "aten.linalg_matrix_norm.str_ord(%x)", "a b c -> a"),
    Row("%x: f64[2, 3, 4]", "aten.linalg_matrix_norm(%x, 1, [0, -1], true)", "a b c -> 1 b 1"),
    Row("%x: f64[2, 3, 4]", "aten.linalg_matrix_norm(%x, -1)", "a b~ c~ -> a"),
    Row("%x: f64[2, 4, 3], %y: f64[1, 4, 3]", "aten.linalg_cross(%x, %y)", "a b c!, 1 b c! -> a b c!"),
    Row("%x: f64[3, 4], %y: f64[3, 4]", "aten.cross(%x, %y)", "a! b, a! b -> a! b"),
    Row("%x: f64[3, 3], %y: f64[3, 3]", "aten.cross(%x, %y, 1)", "a b!, a b! -> a b!"),
    Row("%x: f64[2, 3], %y: f64[4]", "aten.kron(%x, %y)", "a b, c -> a (b * c)"),
    Row("%x: f64[2, 3], %y: f64[4, 5]", "aten.kron(%x, %y)", "a b, c d -> (a * c) (b * d)"),
    Row(
        "%x: f64[2, 3], %y: f64[3, 4], %z: f64[4, 5]", "aten.linalg_multi_dot([%x, %y, %z])", "a b!, c! d!, e! f -> a f"
    ),
    Row("%x: f64[3], %y: f64[3, 4], %z: f64[4]", "aten.linalg_multi_dot([%x, %y, %z])", "a!, b! c!, d! -> ."),
    Row("%x: f64[2, 3, 4], %y: f64[3, 4]", "aten.linalg_vecdot(%x, %y)", "a b c, b c -> a b"),
    Row("%x: f64[2, 3, 4], %y: f64[3, 4]", "aten.linalg_vecdot(%x, %y, dim=1)", "a b c, b c -> a c"),
    Row("%x: f64[4, 2], %y: f64[4, 2]", "aten.linalg_lstsq(%x, %y)", "a! b!, c! d! -> e! f!, g!, ., h!"),
    Row("%x: f64[2, 2]", "aten.linalg_tensorinv(%x, 1)", "a! b! -> c! d!"),
    Row("%x: f64[2, 2], %y: f64[2]", "aten.linalg_tensorsolve(%x, %y)", "a! b!, c! -> d!"),
    Row("%x: f64[3]", "aten.linalg_vander(%x)", "a! -> b! c!"),
    Row("%x: f64[3, 4]", "aten.linalg_diagonal(%x)", "a! b! -> c!"),
    Row("%x: f64[3, 4], %y: f64[4]", "aten.mv(%x, %y)", "a b, b -> a"),
    Row("%b: f64[3], %x: f64[3, 4], %y: f64[4]", "aten.addmv(%b, %x, %y)", "a, a b, b -> a"),
    Row("%x: f64[4], %y: f64[4]", "aten.dot(%x, %y)", "a, a -> ."),
    Row("%x: f64[4], %y: f64[4]", "aten.vdot(%x, %y)", "a, a -> ."),
    Row("%x: f64[3], %y: f64[4]", "aten.ger(%x, %y)", "a, b -> a b"),
    Row("%b: f64[3, 4], %x: f64[3], %y: f64[4]", "aten.addr(%b, %x, %y)", "a b, a, b -> a b"),
    Row("%x: f64[2, 3, 4], %y: f64[4, 5]", "aten.linalg_matmul(%x, %y)", "a b c, c d -> a b d"),
    Row("%x: f64[2, 3, 4]", "aten.mH(%x)", "a b c -> a c b"),
]

OBSERVER = "%o: i64[1], %f: i64[1]"

QUANTISATION = [
    Row(
        f"%x: f32[3, 4], {OBSERVER}, %l: f32[1], %h: f32[1], %s: f32[1], %z: i32[1]",
        "aten._fused_moving_avg_obs_fq_helper_functional(%x, %o, %f, %l, %h, %s, %z, 0.01, 0, 255, -1)",
        "a~ b~, 1, 1, 1, 1, 1, 1 -> a~ b~, a~ b~, 1, 1, 1, 1",
    ),
    Row(
        f"%x: f32[3, 4], {OBSERVER}, %l: f32[3], %h: f32[3], %s: f32[3], %z: i32[3]",
        "aten._fused_moving_avg_obs_fq_helper_functional(%x, %o, %f, %l, %h, %s, %z, 0.01, -128, 127, 0, true, true)",
        "a b~, 1, 1, a, a, a, a -> a b~, a b~, a, a, a, a",
    ),
    Row("%x: f32[3, 4]", "aten.fake_quantize_per_tensor_affine(%x, 0.1, 3, 0, 255)", "a b -> a b"),
    Row(
        "%x: f32[3, 4], %s: f32[1], %z: i32[1]",
        "aten.fake_quantize_per_tensor_affine.tensor_qparams(%x, %s, %z, 0, 255)",
        "a b, 1, 1 -> a b",
    ),
    Row(
        "%x: f32[3, 4], %s: f32[4], %z: i32[4]",
        "aten.fake_quantize_per_channel_affine(%x, %s, %z, 1, 0, 255)",
        "a b, b, b -> a b",
    ),
]

INDEXED = [
    Row("%x: f64[3, 4], %i: i64[2], %y: f64[3, 2]", "aten.index_add(%x, 1, %i, %y)", "a b!, c!, a d! -> a b!"),
    Row("%x: f64[3, 4], %i: i64[2], %y: f64[2, 4]", "aten.index_add(%x, 0, %i, %y, alpha=2)", "a! b, c!, d! b -> a! b"),
    Row("%x: f64[3, 4], %i: i64[1], %y: f64[3, 1]", "aten.index_copy(%x, 1, %i, %y)", "a b!, 1, a 1 -> a b!"),
    Row("%x: f64[3, 4], %i: i64[2]", "aten.index_fill.int_Scalar(%x, 1, %i, 2.0)", "a b!, c! -> a b!"),
    Row(
        "%x: f64[3, 4], %i: i64[2], %y: f64[3, 2]", 'aten.index_reduce(%x, 1, %i, %y, "amax")', "a b!, c!, a d! -> a b!"
    ),
    Row("%x: f64[2, 2, 3]", "aten.affine_grid_generator(%x, [2, 5, 4, 6], false)", "a b! c! -> a d! e! f!"),
]
