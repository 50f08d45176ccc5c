"""METHODS: name -> make(config, info) -> Method, a file each."""

from jaxrec.methods import bc, cql, iql, mcq, td3bc, world_transformer

METHODS = {
    "bc": bc.make,
    "cql": cql.make,
    "iql": iql.make,
    "mcq": mcq.make,
    "td3bc": td3bc.make,
    "world_transformer": world_transformer.make,
}
