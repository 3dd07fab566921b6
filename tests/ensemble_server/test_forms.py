"""The ensemble's two forms, KServe's and the one for environments without KServe, answer alike and are checked alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ensemble_support
from hosts_support import serving
from serinus.errors import ConfigError, InvalidInput
from serinus.protocol.types import InferRequest, Tensor

FORMS = ("ensemble_server", "ensemble_server.native_model:Ensemble")


@pytest.mark.slow  # imports KServe
async def test_both_forms_answer_alike_and_say_the_same_of_themselves(tmp_path: Path):
    folder = ensemble_support.write(tmp_path)
    inputs = ensemble_support.request(25, 8)
    told, answered = [], []
    for form in FORMS:
        async with serving(form, name="fraud", model_dir=folder) as plane:
            metadata = plane.model_metadata("fraud")
            told.append((metadata.platform, metadata.inputs, metadata.outputs, metadata.parameters["members"]))
            tensors = [Tensor.of(name, array) for name, array in inputs.items()]
            response = await plane.infer(InferRequest("fraud", tensors, parameters={"explain": 2}))
            answered.append({tensor.name: tensor.data for tensor in response.outputs})
            with pytest.raises(InvalidInput):
                await plane.infer(InferRequest("fraud", tensors[:1]))
    assert told[0] == told[1]
    assert answered[0].keys() == answered[1].keys()
    for name, array in answered[0].items():
        np.testing.assert_array_equal(array, answered[1][name])


@pytest.mark.slow  # imports KServe
async def test_the_form_without_kserve_needs_a_folder():
    with pytest.raises(ConfigError, match="name the folder that holds ensemble"):
        async with serving(FORMS[1], name="fraud"):
            pass


@pytest.mark.slow  # a process
def test_without_kserve_the_package_gives_the_other_form():
    code = (
        "import importlib.util as util, sys\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'kserve' else found(name, package)\n"
        "from ensemble_server import Ensemble\n"
        "from serinus.model import Model\n"
        "assert issubclass(Ensemble, Model), Ensemble\n"
        "assert 'kserve' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
