"""Topologies by their layout or their type, and the devices to compile for."""

from __future__ import annotations

import importlib.util

import pytest

from mental_r1_jax import sharding
from mental_r1_jax.errors import UserError
from mental_r1_jax.planning import topologies
from mental_r1_jax.planning.topologies import Topology, parse_topology, topology_devices

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the `tpu` extra"
)


@pytest.mark.parametrize(
    ("text", "slices", "layout", "kind", "chips"),
    [
        ("v5e:2x4", 1, "v5e:2x4", "v5e-8", 8),
        ("v5e-1", 1, "v5e:1x1", "v5e-1", 1),
        ("v5p-32", 1, "v5p:2x2x4", "v5p-32", 16),
        ("V6E-64", 2, "v6e:8x8", "v6e-64", 128),
    ],
)
def test_by_layout_or_by_type(text: str, slices: int, layout: str, kind: str, chips: int) -> None:
    found = parse_topology(text, slices)
    assert (found.layout, found.accelerator_type, found.chips) == (layout, kind, chips)
    assert str(found) == (layout if slices == 1 else f"{slices} slices of {layout}")


@pytest.mark.parametrize(
    ("text", "slices"),
    [("v9:2x2", 1), ("v5e", 1), ("v5e:2x2x2", 1), ("v5p:4x4", 1), ("v5e:2xx", 1)]
    + [("v5e-7", 1), ("v5e:0x4", 1), ("v5e:2x4", 0), ("", 1)],
)
def test_nonsense_is_refused_with_the_way_out(text: str, slices: int) -> None:
    with pytest.raises(UserError) as raised:
        parse_topology(text, slices)
    assert "v5p" in str(raised.value) or "v5e" in str(raised.value)


@needs_libtpu
def test_an_impossible_layout_ends_in_a_message() -> None:
    with pytest.raises(UserError, match="v5e:2x4"):
        topology_devices(Topology("v5e", (3, 5)))


def test_without_the_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mental-r1-jax\[tpu\]"):
        topology_devices(parse_topology("v5e-8"))


@needs_libtpu
def test_slices_are_the_outer_part_of_data() -> None:
    """Neighbours along `fsdp` and `tensor` share a slice; the halves of `data` are the slices."""
    devices = topology_devices(parse_topology("v5e:2x4", slices=2))
    assert len(devices) == 16 and sharding.count_slices(devices) == 2
    mesh = sharding.make_mesh(4, 2, 2, devices)
    slices = [[d.slice_index for d in row.flat] for row in mesh.devices]
    assert slices == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
    with pytest.raises(UserError, match="in more than one of 2 slices"):
        sharding.make_mesh(1, 8, 2, devices)


@needs_libtpu
@pytest.mark.parametrize(
    ("kind", "sizes"), [("v6e-32", (2, 8, 2)), ("v5e-64", (2, 8, 4)), ("v5p-128", (2, 8, 4))]
)
def test_axes_may_take_parts_of_the_torus(kind: str, sizes: tuple[int, int, int]) -> None:
    """No axis of 4 x 8 chips is a mesh axis of two."""
    mesh = sharding.make_mesh(*sizes, topology_devices(parse_topology(kind)))
    assert mesh.devices.shape == sizes
    assert len({device.id for device in mesh.devices.flat}) == mesh.size
