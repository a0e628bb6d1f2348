"""Collectives: who exchanges with whom, how much, how often, over which network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mental_r1_jax import sharding
from mental_r1_jax.planning.hlo import parse_program
from mental_r1_jax.planning.traffic import Collective, by_kind, collectives, device_groups


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x=1", [[0, 2], [1, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4], x=1", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x=1", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=2] {'c'}, x=1", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x=1", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x=1", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0},{2,2},{3,3}}, x=1", [[0, 1], [1, 0]]),
        ("source_target_pairs={{0,0},{1,1}}, x=1", [[0]]),
    ],
)
def test_every_way_of_writing_groups(attributes: str, groups: list[list[int]]) -> None:
    found = device_groups(attributes, 4)
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(groups, axis=0))


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of devices"):
        device_groups("replica_groups=everybody", 4)


def looped_sum() -> str:
    """Ten sums over eight devices of 8 x 32 floats each, in a loop; then one gather to 64 x 32."""
    mesh = sharding.make_mesh(2, 4, 1)

    def body(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.sin(jax.lax.psum(x, ("data", "fsdp"))), None

    def run(x: jax.Array) -> jax.Array:
        x = jax.lax.scan(body, x, length=10)[0]
        return jax.lax.all_gather(x, ("data", "fsdp"), tiled=True)

    spec = P(("data", "fsdp"))
    mapped = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=P(), check_vma=False)
    return jax.jit(mapped).lower(jnp.ones((64, 32))).compile().as_text()


def test_bytes_and_counts_of_a_real_program() -> None:
    """A ring moves 2 x 7/8 of 1,024 bytes for each sum, and 7/8 of 8,192 bytes for the gather."""
    found = by_kind(collectives(parse_program(looped_sum()), num_devices=8))
    assert found == {
        "all-gather": {"times": 1, "ici_bytes": 7 / 8 * 8192, "dcn_bytes": 0.0},
        "all-reduce": {"times": 10, "ici_bytes": 10 * 2 * 7 / 8 * 1024, "dcn_bytes": 0.0},
    }


def test_over_two_slices_only_a_chips_share_crosses() -> None:
    """In a slice of four: 2 x 3/4 of the array; between the two: 2 x 1/2 of a quarter of it."""
    found = by_kind(collectives(parse_program(looped_sum()), num_devices=8, num_slices=2))
    assert found["all-reduce"]["ici_bytes"] == 10 * 2 * 3 / 4 * 1024
    assert found["all-reduce"]["dcn_bytes"] == 10 * 2 * 1 / 2 * 1024 / 4


TURNS = 'backend_config={"known_trip_count":{"n":"3"}}'
LINE = "%{name} = bf16[1,128]{{1,0}} all-gather(%x), channel_id=5, replica_groups={{{{0,1}}}}{rest}"


def chained(inside: bool) -> str:
    """A gather in the entry and, with the same channel, in a loop of three; chained or not."""
    rest = ', frontend_attributes={chain_id="0"}' if inside else ""
    return f"""
HloModule jit_f
%body (x: bf16[1,64]) -> bf16[1,64] {{
  %x = bf16[1,64] parameter(0)
  {LINE.format(name="g1", rest=rest)}
  ROOT %y = bf16[1,64] copy(%x)
}}
%condition (x: bf16[1,64]) -> pred[] {{
  ROOT %x = pred[] parameter(0)
}}
ENTRY %main (x: bf16[1,64]) -> bf16[1,64] {{
  %x = bf16[1,64] parameter(0)
  {LINE.format(name="g0", rest=rest)}
  ROOT %w = bf16[1,64] while(%x), condition=%condition, body=%body, {TURNS}
}}
"""


@pytest.mark.parametrize(("inside", "times"), [(True, 1), (False, 4)])
def test_a_chain_of_fusions_is_one_collective(inside: bool, times: int) -> None:
    found = collectives(parse_program(chained(inside)), num_devices=2)
    assert sum(each.times for each in found) == times


def test_a_fused_reduce_scatter_is_no_all_reduce() -> None:
    text = """
HloModule jit_f
%all-reduce-scatter (x: f32[8,4]) -> f32[2,4] {
  %x = f32[8,4] parameter(0)
  %sum = f32[8,4] all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = f32[2,4] dynamic-slice(%sum)
}
ENTRY %main (x: f32[8,4]) -> f32[2,4] {
  %x = f32[8,4] parameter(0)
  ROOT %y = f32[2,4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter
}
"""
    (found,) = collectives(parse_program(text), num_devices=4)
    expected: dict[str, Any] = {"kind": "reduce-scatter", "array_bytes": 128, "ici_bytes": 96.0}
    assert {name: getattr(found, name) for name in expected} == expected
    assert isinstance(found, Collective)


def test_an_exchange_through_the_hosts_crosses_between_slices() -> None:
    """As the TPU compiler writes it: a chip sends its 64 x 8 x 128 floats to the other slice."""
    text = """
HloModule jit_f
ENTRY %main (x: f32[64,8,128]) -> f32[64,8,128] {
  %x = f32[64,8,128] parameter(0)
  %t = token[] after-all()
  %s = (f32[64,8,128], u32[], token[]) send(%x, %t), channel_id=2, is_host_transfer=true, HOW
  ROOT %y = f32[64,8,128] copy(%x)
}
"""
    how = 'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
    (found,) = collectives(parse_program(text.replace("HOW", how)), num_devices=16, num_slices=2)
    assert (found.kind, found.group, found.ici_bytes) == ("all-reduce", 2, 0.0)
    assert found.dcn_bytes == 64 * 8 * 128 * 4
    assert not collectives(parse_program(text.replace("HOW", "x=1")), num_devices=16, num_slices=2)


def test_exchanges_that_share_a_channel_all_count() -> None:
    """Everything inside `shard_map` has channel 1, whatever its kind, size and source."""
    groups = "channel_id=1, replica_groups={{0,1}}"
    text = f"""
HloModule jit_f
ENTRY %main (x: f32[8,4]) -> f32[8,4] {{
  %x = f32[8,4] parameter(0)
  %a = f32[8,4] all-to-all(%x), {groups}, metadata={{op_name="there"}}
  %b = f32[8,4] all-to-all(%a), {groups}, metadata={{op_name="back"}}
  %e = f32[8,4] all-to-all(%b), {groups}, metadata={{op_name="back"}}
  %c = f32[16,4] all-gather(%e), {groups}, metadata={{op_name="back"}}
  ROOT %d = f32[8,4] slice(%c), slice={{[0:8], [0:4]}}
}}
"""
    found = by_kind(collectives(parse_program(text), num_devices=2))
    assert found["all-to-all"] == {"times": 3, "ici_bytes": 3 * 128 / 2, "dcn_bytes": 0}
    assert found["all-gather"] == {"times": 1, "ici_bytes": 256 / 2, "dcn_bytes": 0}
