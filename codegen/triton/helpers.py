"""Device functions that a generated module defines when it needs them, in forms that also run in Triton's interpreter.

Errors are against the exact function, in units of the last place (ulp) of fp32, for correctly rounded ``exp2`` and ``log``; the
approximate ones of a GPU add about 2 ulp. The fp64 forms serve the interpreter and tests.
"""

from __future__ import annotations

LOG2E = 1.4426950408889634

_EXP = '''
@triton.jit
def _exp(x):
    """exp(x) = exp2(y) (1 + r ln 2) with y = x log2 e rounded and r what rounding left, which is |x| ulp of the result.

    Within 1 ulp of exp2. Where y is infinite, or its power is 0 or infinite anyway, r is no number that counts.
    """
    y = x * 1.4426950216293335
    r = tl.fma(x, 1.925962991e-8, tl.fma(x, 1.4426950216293335, -y))
    return tl.exp2(y) * tl.fma(tl.where(tl.abs(y) < 256.0, r, 0.0), 0.6931471805599453, 1.0)
'''

_TANH = '''
@triton.jit
def _tanh(x):
    """tanh(x): an odd polynomial below 0.625 (Cephes tanhf), 1 - 2 / (exp(2 |x|) + 1) above; within 3 ulp."""
    z = x * x
    p = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z - 3.33332819422e-1
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp2(size * 2.8853900817779268) + 1.0)
    return tl.where(size < 0.625, x + x * z * p, tl.where(x < 0, -far, far))
'''

_SHORT_TANH = '''
@triton.jit
def _short_tanh(x):
    """tanh(x) for what is stored in 16 bits: a quotient of polynomials, within 2e-6 of itself (a 200th of what fp16 rounds away).

    It takes 12 instructions and a reciprocal root instead of 19, an exponential and a reciprocal: special functions have few units.
    """
    x = tl.clamp(x, -7.0, 7.0, propagate_nan=tl.PropagateNan.ALL)
    z = x * x
    p = ((3.9959006391e-6 * z + 2.2930963039e-3) * z + 0.12322063942) * z + 0.99999896765
    q = ((1.4398520753e-4 * z + 2.1151650825e-2) * z + 0.45654623991) * z + 1.0
    return x * p * _short_inverse(q)
'''

_SHORT_INVERSE = '''
@triton.jit
def _short_inverse(x):
    """1 / x for x >= 1, for what is stored in 16 bits: within 4 ulp, in two instructions instead of seven."""
    r = tl.rsqrt(x)
    return r * r
'''

_TANH_F64 = '''
@triton.jit
def _tanh(x):
    """tanh(x) = -e / (2 + e) with e = expm1(-2 |x|), which is (u - 1) log(u') / log(u) for u = exp(-2 |x|) near 1 (Kahan)."""
    size = tl.abs(x)
    u = tl.exp(-2.0 * size)
    near = tl.where(u == 1.0, -2.0 * size, (u - 1.0) * (-2.0 * size) / tl.log(tl.where((u == 1.0) | (u < 0.5), 0.5, u)))
    e = tl.where(u < 0.5, u - 1.0, near)
    far = -e / (2.0 + e)
    return tl.where(x < 0, -far, far)
'''

_LOG1P = '''
@triton.jit
def _log1p(x):
    """log(1 + x): 2 atanh(z) with z = x / (2 + x) as a series for -0.5 <= x <= 1, log beyond; within 3 ulp."""
    z = x / (2.0 + x)
    w = z * z
    p = (((0.06666667 * w + 0.07692308) * w + 0.09090909) * w + 0.11111111) * w + 0.14285715
    near = 2.0 * z * (((p * w + 0.2) * w + 0.33333333) * w + 1.0)
    return tl.where((x >= -0.5) & (x <= 1.0), near, tl.log(1.0 + x))
'''

_LOG1P_F64 = '''
@triton.jit
def _log1p(x):
    """log(1 + x) = log(u) x / (u - 1) for the rounded sum u = 1 + x (Kahan)."""
    u = 1.0 + x
    same = (u == 1.0) | (u > 1e300)
    return tl.where(u == 1.0, x, tl.where(same, tl.log(u), tl.log(u) * x / tl.where(same, 1.0, u - 1.0)))
'''

_TURN = '''
@triton.jit
def _turn(x, quarter: tl.constexpr):
    """sin(x + quarter pi / 2): reduced to |r| <= pi / 4 in three steps (Cody and Waite), then polynomials (Cephes sinf, cosf).

    Absolute error below 2e-7 for |x| < 1e5. The library's own keeps a table in local memory for larger arguments.
    """
    n = tl.floor(x * 0.6366197723675814 + 0.5)
    r = ((x - n * 1.5703125) - n * 4.837512969970703125e-4) - n * 7.54978995489188216e-8
    z = r * r
    s = r + r * z * (((-1.9515295891e-4 * z + 8.3321608736e-3) * z) - 1.6666654611e-1)
    c = 1.0 - 0.5 * z + z * z * ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2)
    turns = n.to(tl.int32) + quarter
    wave = tl.where((turns & 1) == 0, s, c)
    return tl.where((turns & 2) == 0, wave, -wave)
'''

_TURN_F64 = '''
@triton.jit
def _turn(x, quarter: tl.constexpr):
    """sin(x), or cos(x) for a quarter of 1."""
    if quarter == 0:
        return tl.sin(x)
    else:
        return tl.cos(x)
'''

_SOFTPLUS = '''
@triton.jit
def _softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))."""
    return tl.maximum(x, 0.0) + _log1p(tl.exp2(tl.abs(x) * -1.4426950408889634))
'''

_POW = '''
@triton.jit
def _pow(x, y):
    """x ^ y = exp2(y log2 |x|), signed for odd y, NaN for x < 0 and a broken y; error about |y log2 x| ulp."""
    size = tl.exp2(y * tl.log2(tl.abs(x)))
    odd = tl.floor(y * 0.5) * 2.0 != tl.floor(y)
    power = tl.where(odd, -size, size)
    negative = tl.where(tl.floor(y) == y, power, float("nan"))
    return tl.where(y == 0.0, 1.0, tl.where(x < 0, negative, size))
'''

_FLOOR_DIV = '''
@triton.jit
def _floor_div(a, b):
    """a // b rounded down, as in Python (Triton's own rounds towards zero)."""
    q = a // b
    r = a - q * b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), q - 1, q)
'''

_FLOOR_MOD = '''
@triton.jit
def _floor_mod(a, b):
    """a - b * floor(a / b), as in Python (Triton's own has the sign of a)."""
    r = a - (a // b) * b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)
'''

_STIRRED = """
@triton.jit
def _stirred(x):
    x = (x ^ (x >> 16)) * tl.full([], 0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 15)) * tl.full([], 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)
"""

_HASH = '''
@triton.jit
def _hash(key, counter):
    """31 bits made of the low 32 bits of two ints."""
    first = _stirred(tl.cast(key, tl.uint32) ^ tl.full([], 0x9E3779B9, tl.uint32))
    second = _stirred(first ^ tl.cast(counter, tl.uint32))
    return tl.cast(second & tl.full([], 0x7FFFFFFF, tl.uint32), tl.int32)
'''

_PRODUCT = """
@triton.jit
def _product(a, b):
    return a * b
"""

_INTERPRETED = """
# Triton's interpreter truncates to bf16 and multiplies bf16 blocks as if they were integers; what follows makes up for it.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""

_BF16 = '''
@triton.jit
def _bf16(x):
    """x rounded to the nearest bf16, ties to even."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(tl.bfloat16)
'''

_PACKED = '''
@triton.jit
def _packed_{name}(x):
    """x in {name}, two numbers an instruction: LLVM would round what a selection selects number by number, and put the halves together."""
    if INTERPRETED:
        return {plain}
    else:
        asm: tl.constexpr = "cvt.rn.{name}x2.f32 $0, $2, $1;"
        return tl.inline_asm_elementwise(asm, "=r,r,r", [x], dtype={dtype}, is_pure=True, pack=2)
'''
_PACKED_BF16 = _PACKED.format(name="bf16", plain="_bf16(x)", dtype="tl.bfloat16")
_PACKED_F16 = _PACKED.format(name="f16", plain="x.to(tl.float16)", dtype="tl.float16")

_E4M3 = '''
@triton.jit
def _e4m3(x):
    """The number of 8 bits, with all of them set no number: those of an f16 but for a factor of 256."""
    bits = x.to(tl.int32)
    half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.where((bits & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)
'''

_E5M2 = '''
@triton.jit
def _e5m2(x):
    """The number of 8 bits, which are the upper half of an f16."""
    return (x.to(tl.int32) << 8).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
'''

_DOT = '''
@triton.jit
def _dot(a, b, acc=None):
    """The matrix product of two bf16 blocks (+ acc), accumulated in fp32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc=acc)
    else:
        return tl.dot(a, b, acc=acc)
'''

_ADD_UP = '''
@triton.jit
def _add_up(chosen, x):
    """The matrix product of ``chosen``, of numbers 0 and 1, and x in two parts of bf16, which keep 16 bits of its numbers."""
    ones = chosen.to(tl.bfloat16)
    high = x.to(tl.bfloat16)
    low = (x - high.to(tl.float32)).to(tl.bfloat16)
    return _dot(ones, low, _dot(ones, high))
'''

_TF32 = '''
@triton.jit
def _tf32(x):
    """x rounded to the nearest number of tf32, ties to even: a matrix unit would cut off the bits that it does not take."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
'''

_ROW_DOT = '''
@triton.jit
def _row_dot(a, b, precision: tl.constexpr):
    """The sums of a * b along the rows: the diagonal of a matrix product, added up in the order of one."""
    row = tl.arange(0, a.shape[0])
    product = tl.dot(a, tl.trans(b), input_precision=precision)
    return tl.sum(tl.where(row[:, None] == row[None, :], product, 0.0), axis=1)
'''

_MIDDLE_SUM = '''
@triton.jit
def _middle_sum(x):
    """The sums of x along the middle one of three axes, as sums along the last: Triton makes a matrix product of its own of
    a[:, :, None] * b[None, :, :] summed along the middle one, in tf32, and a wrong one where there are few points."""
    return tl.sum(tl.permute(x, (0, 2, 1)), axis=2)
'''

_F32 = {
    "_middle_sum": _MIDDLE_SUM,
    "_interpreted": _INTERPRETED,
    "_bf16": _BF16,
    "_packed_bf16": _PACKED_BF16,
    "_packed_f16": _PACKED_F16,
    "_e4m3": _E4M3,
    "_e5m2": _E5M2,
    "_dot": _DOT,
    "_add_up": _ADD_UP,
    "_tf32": _TF32,
    "_row_dot": _ROW_DOT,
    "_exp": _EXP,
    "_log1p": _LOG1P,
    "_tanh": _TANH,
    "_short_inverse": _SHORT_INVERSE,
    "_short_tanh": _SHORT_TANH,
    "_softplus": _SOFTPLUS,
    "_turn": _TURN,
    "_pow": _POW,
    "_floor_div": _FLOOR_DIV,
    "_floor_mod": _FLOOR_MOD,
    "_stirred": _STIRRED,
    "_hash": _HASH,
    "_product": _PRODUCT,
}
_F64 = _F32 | {"_log1p": _LOG1P_F64, "_tanh": _TANH_F64, "_turn": _TURN_F64}
_NEEDS = {
    "_hash": {"_stirred"},
    "_softplus": {"_log1p"},
    "_short_tanh": {"_short_inverse"},
    "_bf16": {"_interpreted"},
    "_packed_bf16": {"_bf16", "_interpreted"},
    "_packed_f16": {"_interpreted"},
    "_dot": {"_interpreted"},
    "_add_up": {"_dot", "_interpreted"},
}


def sources(used: set[str], compute: str) -> list[str]:
    """The texts of the helpers in ``used`` and of those they call, callees first."""
    wanted = set(used)
    for name in used:
        wanted |= _NEEDS.get(name, set())
    table = _F64 if compute == "f64" else _F32
    return [text.strip() for name, text in table.items() if name in wanted]
