"""The fraud combiner, against the same decisions computed row by row in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ensemble_support as support
from deferred import Deferred
from serinus.errors import InvalidInput

Ensemble = Deferred("ensemble_server", "Ensemble")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory) -> Ensemble:
    model = Ensemble("fraud", str(support.write(tmp_path_factory.mktemp("fraud"))))
    model.load()
    return model


def expected_row(margin: float, amount: float, terminal: bytes, count: float) -> tuple[float, bytes, bytes]:
    """The documented rules, for one row."""
    score = 1 / (1 + math.exp(-(0.25 + 0.5 * (2.0 * float(margin) - 0.5))))
    fired = []
    if terminal in (b"T-13", b"T-66"):
        fired.append(("BLOCKED_TERMINAL", "decline"))
    if amount > 1000:
        fired.append(("AMOUNT_LIMIT", "review"))
    if count > 10:
        fired.append(("VELOCITY_LIMIT", "review"))
    score = float(np.float32(score))
    if score >= 0.8:
        fired.append(("SCORE_DECLINE", "decline"))
    elif score >= 0.4:
        fired.append(("SCORE_REVIEW", "review"))
    decision = fired[0][1] if fired else "approve"
    return score, decision.encode(), ";".join(code for code, _ in fired).encode()


@pytest.mark.slow
@given(count=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_every_row_is_decided_as_the_documented_rules_say(ensemble: Ensemble, count: int, seed: int):
    inputs = support.request(count, seed)
    outputs = ensemble.predict_arrays(inputs, {})
    margins = support.margins(inputs["features"])
    for i in range(count):
        score, decision, reasons = expected_row(
            margins[i], inputs["amount"][i], inputs["terminal_id"][i], inputs["count_1d"][i]
        )
        assert outputs["score"][i] == pytest.approx(score, abs=2e-6)
        assert (outputs["decision"][i], outputs["reasons"][i]) == (decision, reasons)
    assert outputs["score"].dtype == np.float32


def test_rows_score_alike_alone_and_together(ensemble: Ensemble):
    inputs = support.request(50, 3)
    together = ensemble.predict_arrays(inputs, {})
    for i in range(50):
        alone = ensemble.predict_arrays({name: array[i : i + 1] for name, array in inputs.items()}, {})
        for name, array in together.items():
            assert alone[name][0] == array[i]


def test_a_rule_on_an_optional_input_is_skipped_without_it(ensemble: Ensemble):
    inputs = support.request(30, 1)
    inputs["count_1d"][:] = 99
    assert all(b"VELOCITY_LIMIT" in reasons for reasons in ensemble.predict_arrays(inputs, {})["reasons"])
    del inputs["count_1d"]
    assert not any(b"VELOCITY_LIMIT" in reasons for reasons in ensemble.predict_arrays(inputs, {})["reasons"])


def test_features_are_named_only_when_the_request_asks(ensemble: Ensemble):
    import xgboost

    inputs = support.request(40, 5)
    assert not any(b"+" in reasons for reasons in ensemble.predict_arrays(inputs, {})["reasons"])
    explained = ensemble.predict_arrays(inputs, {"explain": True})["reasons"]
    booster = xgboost.Booster(model_file=bytearray(support._booster()))
    matrix = xgboost.DMatrix(inputs["features"], feature_names=list(support.COLUMNS))
    shares = booster.predict(matrix, pred_contribs=True)[:, :-1]
    for i, reasons in enumerate(explained):
        best = sorted(range(4), key=lambda column: -shares[i, column])[:2]
        named = [f"+{support.COLUMNS[column]}" for column in best if shares[i, column] > 0]
        assert [code for code in reasons.decode().split(";") if code.startswith("+")] == named
    one = ensemble.predict_arrays(inputs, {"explain": 1})["reasons"]
    assert max(reasons.count(b"+") for reasons in one) == 1
    with pytest.raises(InvalidInput, match="'explain'"):
        ensemble.predict_arrays(inputs, {"explain": "please"})


def test_a_nan_is_not_held_against_a_limit(ensemble: Ensemble):
    inputs = support.request(5)
    inputs["amount"][3] = math.nan
    with pytest.raises(InvalidInput, match="'amount', row 3"):
        ensemble.predict_arrays(inputs, {})


def variant(tmp_path, old: str, new: str) -> Ensemble:
    assert old in support.TEXT
    model = Ensemble("fraud", str(support.write(tmp_path, support.TEXT.replace(old, new))))
    model.load()
    return model


def test_precedence_is_by_kind_whatever_the_order_and_the_first_that_fires_decides(tmp_path):
    model = variant(
        tmp_path,
        "values_file: blocked.txt, action: decline}",
        "values: [T-13], action: approve, code: TRUSTED}",
    )
    inputs = support.request(3)
    inputs["terminal_id"][:] = b"T-13"
    inputs["amount"][:] = 5000
    outputs = model.predict_arrays(inputs, {})
    assert set(outputs["decision"]) == {b"approve"}
    assert all(reasons.startswith(b"TRUSTED;AMOUNT_LIMIT") for reasons in outputs["reasons"])


def test_a_floor_sets_the_mildest_outcome_and_lets_harsher_ones_through(tmp_path):
    plain = support.TEXT.replace("limit: 1000, action: review", "limit: 1000, action: review, floor: true")
    model = Ensemble("fraud", str(support.write(tmp_path, plain)))
    model.load()
    inputs = support.request(200, 9)
    inputs["terminal_id"][:] = b"T-1"
    inputs["count_1d"][:] = 0
    inputs["amount"][:] = 5000
    outputs = model.predict_arrays(inputs, {})
    declined = outputs["score"] >= 0.8
    assert declined.any()
    assert set(outputs["decision"][declined]) == {b"decline"}
    assert set(outputs["decision"][~declined]) == {b"review"}


def test_an_anomaly_is_what_its_member_answers_above_the_limit_whatever_the_blend_makes_of_it(tmp_path):
    text = support.without_rules().replace(
        "    contributions:",
        "    rules:\n      - {rule: anomaly, member: xgb, limit: 1.5, action: review, floor: true}\n    contributions:",
    )
    model = Ensemble("fraud", str(support.write(tmp_path, text)))
    model.load()
    inputs = support.request(300, 11)
    outputs = model.predict_arrays(inputs, {})
    strange = support.margins(inputs["features"]) > 1.5
    assert 0 < strange.sum() < 300
    assert [b"ANOMALY" in reasons.split(b";") for reasons in outputs["reasons"]] == strange.tolist()
    declined = outputs["score"] >= 0.8
    assert (strange & declined).any()
    assert set(outputs["decision"][strange & ~declined]) <= {b"review"}
    assert set(outputs["decision"][declined]) == {b"decline"}


def test_probabilities_blend_as_the_margins_that_they_stand_for(tmp_path):
    as_probability = Ensemble(
        "fraud",
        str(
            support.write(
                tmp_path / "q",
                support.TEXT.replace("{score: margin}", "{score: probability}").replace(
                    "scale: margin", "scale: probability"
                ),
            )
        ),
    )
    as_probability.load()
    as_margin = Ensemble("fraud", str(support.write(tmp_path / "m")))
    as_margin.load()
    inputs = support.request(100, 4)
    np.testing.assert_allclose(
        as_probability.predict_arrays(inputs, {})["score"], as_margin.predict_arrays(inputs, {})["score"], atol=1e-5
    )


def test_members_are_cut_by_name_and_by_index_and_weighted(tmp_path):
    text = support.TEXT.replace(
        "shape: [-1, 4]}", "shape: [-1, 5], columns: [extra, km_from_last, hour_sin, amount_ratio_30d, amount]}"
    ).replace(
        "inputs: [{tensor: features}]",
        "inputs: [{tensor: features, columns: [amount, amount_ratio_30d, 2, km_from_last]}]",
    )
    shuffled = Ensemble("fraud", str(support.write(tmp_path / "s", text)))
    shuffled.load()
    plain = Ensemble("fraud", str(support.write(tmp_path / "p")))
    plain.load()
    inputs = support.request(60, 2)
    features = inputs["features"]
    wide = np.column_stack([np.full(60, np.nan, np.float32), features[:, ::-1]])
    expected = plain.predict_arrays(inputs, {})
    got = shuffled.predict_arrays({**inputs, "features": wide}, {})
    for name in expected:
        assert got[name].tolist() == expected[name].tolist()
