"""METHODS: name -> make(config, info) -> Method, a file each."""

from jaxrec.methods import (
    bc,
    combo,
    cql,
    dt,
    iql,
    mcq,
    mopo,
    td3bc,
    world_mlp,
    world_transformer,
)

METHODS = {
    "bc": bc.make,
    "combo": combo.make,
    "cql": cql.make,
    "dt": dt.make,
    "iql": iql.make,
    "mcq": mcq.make,
    "mopo": mopo.make,
    "td3bc": td3bc.make,
    "world_mlp": world_mlp.make,
    "world_transformer": world_transformer.make,
}
