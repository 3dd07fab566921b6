"""Options of a path, changed by a later `serinus up`; what is in force and what was refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_support import manifest
from serinus.errors import ConfigError
from serinus.local.plan.deployment_plan import DOMAINS, PlanOptions
from serinus.local.run.applied_manifests import AppliedManifests, ManifestsRefused, PathOptions

BEFORE = PathOptions(PlanOptions(images={"a": ("x",)}, mounts={"c": "/c"}, propagate=("X-A",)), (Path("r"),), True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, BEFORE),
        ({"replicas": 3}, {"max_replicas": 3}),
        ({"image": {"b": ["y", "z"], "a": ["w"]}}, {"images": {"a": ("w",), "b": ("y", "z")}}),
        ({"mount": {"d": "/d"}}, {"mounts": {"c": "/c", "d": "/d"}}),
        ({"domain": ["{{.Name}}.my"]}, {"domains": ("{{.Name}}.my", *DOMAINS)}),
        ({"propagate_header": ["X-B", "X-A"]}, {"propagate": ("X-A", "X-B")}),
        ({"storage_config": {"k": "{}"}}, {"storage_config": {"k": "{}"}}),
    ],
)
def test_each_option_is_added_to_those_that_a_path_has(given: dict, expected: object) -> None:
    changed = BEFORE.changed(given)
    if isinstance(expected, dict):
        for name, value in expected.items():
            assert getattr(changed.plan, name) == value
    else:
        assert changed == expected


def test_runtimes_and_watching_are_options_too() -> None:
    changed = BEFORE.changed({"runtimes": ["/s", "r"], "watch": False})
    assert changed.runtimes == (Path("r"), Path("/s"))
    assert not changed.watch
    with pytest.raises(ConfigError, match="colour: no option that a running supervisor takes"):
        BEFORE.changed({"colour": "red"})


def _manifests() -> AppliedManifests:
    return AppliedManifests(PathOptions(PlanOptions(), (), True))


def _take(manifests: AppliedManifests, path: Path, **given: object) -> None:
    for one in manifests.read([path], given):
        manifests.take(*one)


def test_a_path_keeps_its_options_and_is_one_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.yaml").write_text(manifest())
    (tmp_path / "b.yaml").write_text(manifest(name="other"))
    monkeypatch.chdir(tmp_path)
    manifests = _manifests()
    _take(manifests, Path("a.yaml"), watch=False)
    _take(manifests, Path("b.yaml"))
    _take(manifests, tmp_path / "a.yaml", replicas=2)
    ((path, _, options),) = manifests.read([tmp_path / "a.yaml"])
    assert path == Path("a.yaml")
    assert (options.plan.max_replicas, options.watch) == (2, False)
    assert manifests.watched() == [Path("b.yaml")]
    assert not manifests.has_changed(path)


def test_what_was_refused_stays_until_it_is_taken_and_a_new_path_is_never_in_it(tmp_path: Path) -> None:
    manifests, path = _manifests(), tmp_path / "a.yaml"
    path.write_text("kind: [")
    with pytest.raises(ConfigError):
        manifests.read([path])
    assert manifests.refused == {}
    path.write_text(manifest())
    _take(manifests, path)
    for text in ("kind: [", manifest().replace("containers:", "contaners:")):
        path.write_text(text)
        with pytest.raises(ConfigError):
            manifests.read([path])
        assert list(manifests.refused) == [path]
    path.write_text(manifest())
    _take(manifests, path)
    assert manifests.refused == {}


def test_of_several_paths_the_later_is_judged_against_the_earlier_and_nothing_is_in_force_of_a_refused_set(
    tmp_path: Path,
) -> None:
    mode = "  annotations:\n    serving.kserve.io/deploymentMode: {}\n"
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text(manifest(annotations=mode.format("Standard")))
    second.write_text(manifest(annotations=mode.format("Knative")))
    manifests = _manifests()
    with pytest.raises(ManifestsRefused, match="cannot be changed from Standard to Knative"):
        manifests.read([first, second])
    _take(manifests, second)
    with pytest.raises(ManifestsRefused, match="cannot be changed from Knative to Standard"):
        manifests.read([first])
    manifests.forget("default", "fraud")
    _take(manifests, first)
