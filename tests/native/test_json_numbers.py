"""Numbers that are hard to read exactly: the kernel gives the bits of Python's float(), or leaves them to the ordinary path."""

from __future__ import annotations

import numpy as np
import pytest

from protocol_support import plain_codec
from serinus.errors import InvalidInput
from serinus.native import library
from serinus.protocol.json_kernel import JsonKernel
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import Limits

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not built: python -m serinus.native.build")

HALF_OF_THE_SMALLEST = f"{5**1075}e-1075"
"""2^-1075, exactly: half of the smallest double, which rounds to even, 0; written out in full it has 752 digits."""
HALF_ABOVE_THE_LARGEST = str(2**1024 - 2**970)
"""Halfway from the largest double to 2^1024: it rounds to even, to infinity."""
NEAR_ONE = str(10**40 + 10**40 // 2**53)
"""1 + 2^-53, but for the last digits, as 41 digits before an exponent of -40."""

# fmt: off
CASES = {
    # The exponent brings back what the digits took away, beyond any count of digits that an exponent of five or six can name.
    "a-million-zeros": "0." + "0" * 1_000_000 + "1e1000001",
    "a-million-zeros-and-one-less": "0." + "0" * 1_000_000 + "1e1000000",
    "a-hundred-thousand-zeros": "0." + "0" * 100_000 + "1e100001",
    "two-hundred-thousand-zeros-before": "1" + "0" * 200_000 + "e-200000",
    "a-million-digits-before": "7" * 1_000_000 + "e-1000000",
    "a-million-digits-behind": "0." + "7" * 1_000_000,
    "a-million-zeros-between": "1." + "0" * 1_000_000 + "1",
    "a-million-zeros-and-an-exponent-short-of-them": "0." + "0" * 1_000_000 + "1e999678",
    "a-million-zeros-and-a-double-just-below": "0." + "0" * 1_000_000 + "1e999677",
    # Exponents that overflow integers of 16, 31, 32, 63, 64 and more bits.
    **{f"1e-{n}": f"1e-{n}" for n in (2**15, 2**16, 99_999, 100_000, 10**6, 2**31, 2**32, 2**33, 2**63, 2**64, 10**40)},
    **{f"0e{n}": f"0e{n}" for n in (2**31, 2**32, 2**63, 2**64 + 3, 10**40)},
    **{f"0.0e-{n}": f"0.0e-{n}" for n in (2**31, 2**64 + 3)},
    "an-exponent-that-wraps-to-nothing-in-32-bits": f"1e-{2**32}",
    "an-exponent-that-wraps-to-nothing-in-64-bits": f"1e-{2**64}",
    "leading-zeros-in-the-exponent": "1e" + "0" * 100_000 + "5",
    "leading-zeros-in-a-negative-exponent": "1E-" + "0" * 40 + "300",
    "leading-zeros-behind-the-point": "0." + "0" * 300 + "123456789012345678901234567890",
    "trailing-zeros": "1.5" + "0" * 400,
    # Zeros.
    "zero": "0", "zero-with-a-point": "0.0", "negative-zero-with-a-point": "-0.0", "negative-zero-with-an-exponent": "-0e5",
    "negative-zeros": "-0." + "0" * 400, "a-negative-number-that-becomes-zero": "-1e-400",
    # Subnormals, the ends of their range, and halfway between two.
    "smallest": "4.9406564584124654e-324", "smallest-in-short": "5e-324", "half-of-the-smallest": HALF_OF_THE_SMALLEST,
    "just-above-half-of-the-smallest": HALF_OF_THE_SMALLEST.replace("e", ".1e"),
    "just-below-half-of-the-smallest": f"{5**1075 - 1}e-1075",
    "largest-subnormal": "2.2250738585072009e-308", "between-subnormal-and-normal": "2.2250738585072011e-308",
    "smallest-normal": "2.2250738585072014e-308", "three-halves-of-the-smallest": f"{3 * 5**1075}e-1075",
    # The largest ones.
    "largest": "1.7976931348623157e308", "just-below-half-above-the-largest": str(2**1024 - 2**970 - 1),
    "largest-in-full": str(2**1024 - 2**971), "largest-with-an-exponent": f"{2**1024 - 2**971}e0",
    # Halfway between two doubles, in full, and a digit beside it.
    "halfway": "9007199254740993", "halfway-from-odd": "9007199254740995", "halfway-with-a-point": "9007199254740993.0",
    "just-above-halfway": "9007199254740993." + "0" * 900 + "1", "just-below-halfway": "9007199254740992." + "9" * 900,
    "halfway-by-an-exponent": f"{(2**53 + 1) * 5**20}e-20", "near-one": f"{NEAR_ONE}e-40",
    "halfway-of-20-digits": "18446744073709550592", "beyond-64-bits": "18446744073709551617",
    # Counts of digits around those that 64 bits hold.
    **{f"{n}-nines": "9" * n for n in (18, 19, 20, 21, 38)},
    **{f"{n}-nines-behind-a-point": "0." + "9" * n for n in (7, 8, 9, 15, 16, 17, 18, 19, 20, 21, 38)},
    **{f"{n}-digits-across-the-point": "1234567890"[: n // 2] + "." + "1234567890123"[: n - n // 2] for n in (18, 19, 20, 21)},
}
# fmt: on

INFINITE = {
    "half-above-the-largest": HALF_ABOVE_THE_LARGEST,
    "1e309": "1e309",
    "an-exponent-of-32-bits": f"1e{2**32}",
    "an-exponent-of-64-bits": f"1e{2**64}",
    "a-million-digits": "7" * 1_000_000,
    "a-million-zeros-and-more": "0." + "0" * 1_000_000 + "1e1000310",
}


def read(text: str) -> np.ndarray | None:
    """One number through the kernel, FP64 [1]; None where it leaves it to the ordinary path."""
    kernel = JsonKernel.open(Limits())
    assert kernel is not None
    request = kernel.decode_request(document(text), None, "m", "", {})
    return None if request is None else request.inputs[0].data


def document(text: str) -> bytes:
    return b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP64","data":[%b]}]}' % text.encode()


@pytest.mark.parametrize("sign", ["", "-"], ids=["plus", "minus"])
@pytest.mark.parametrize("text", CASES.values(), ids=CASES.keys())
def test_a_number_is_read_as_python_reads_it_or_left_alone(text: str, sign: str):
    signed = text.removeprefix("-") if sign == "" else "-" + text.removeprefix("-")
    expected = np.float64(signed)
    if expected == 0 and not set(signed) & set(".eE"):
        expected = np.float64(0)  # -0 is an integer in JSON, and integers have one zero
    found = read(signed)
    if found is not None:
        assert found.tobytes() == expected.tobytes()
    through_both = RestCodec().decode_request(document(signed), model_name="m").inputs[0].data
    assert through_both.tobytes() == expected.tobytes()


def test_most_of_them_are_read_by_the_kernel_itself():
    taken = [name for name, text in CASES.items() if read(text) is not None]
    assert len(taken) > 0.8 * len(CASES), sorted(set(CASES) - set(taken))


@pytest.mark.parametrize("text", INFINITE.values(), ids=INFINITE.keys())
def test_what_is_infinite_as_a_double_is_left_to_the_ordinary_path_and_refused(text: str):
    assert float(text) == np.inf
    assert read(text) is None
    assert read("-" + text) is None
    for codec in (RestCodec(), plain_codec()):
        with pytest.raises(InvalidInput):
            codec.decode_request(document(text), model_name="m")
