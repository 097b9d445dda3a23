"""Where every array lives: the mesh, one table for parameters, one rule for batches.

The mesh has the axes ("data", "fsdp", "tensor"). Rows of a batch are split over data and fsdp
together; parameters over fsdp and tensor by the table RULES, matched on their path. Optimizer
moments and averaged weights have paths that end like their parameter's and so land beside it.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from cosdiff_jax.shapes import Batch

AXES = ("data", "fsdp", "tensor")
ROWS = Spec(("data", "fsdp"))

# Pattern on the end of the path -> placement of the last dimensions (layer axes of nn.scan lead).
# First match wins. Projections into heads or into the wide MLP are split on their output,
# projections back to the residual stream on their input, so that a pair needs one all-reduce.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(qkv|cross_q)(/project)?/kernel$", ("fsdp", "tensor", None)),
    (r"(attention_out/project|/heads/project)/kernel$", ("tensor", None, "fsdp")),
    (r"(gate_up|modulation\w*(/\w+)*)/kernel$", ("fsdp", None, "tensor")),
    (r"(^|/)(down|mlp_out|fc2|out)/kernel$", ("tensor", "fsdp")),
    (r"(^|/)embed\w*/embedding$", ("tensor", "fsdp")),
    (r"/kernel$", ("fsdp", "tensor")),
    (r"(^|/)bank$", ("data", None, None)),
    (r"(embedding|position\w*|table|token|start|projection)$", (None, "fsdp")),
    (r"(^|/)covariance$", ("fsdp", None)),
    (r"(bias|scale|weight|mean|temperature|count|step|ns_coeffs)$", ()),
)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices; one size may be -1 and takes what is left.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    sizes, devices = [data, fsdp, tensor], jax.device_count()
    given = [size for size in sizes if size != -1]
    if len(given) == 2 and min(given) > 0:
        sizes[sizes.index(-1)] = devices // int(np.prod(given))
    if any(size < 1 for size in sizes) or int(np.prod(sizes)) != devices:
        raise ValueError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fit {devices} device(s)"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def local(devices: Sequence[Any] = ()) -> Mesh:
    """A mesh over devices of this host, that the rows of a drawing are split over.

    Args:
      devices: by default all of an accelerator, and of a CPU one, for its others are only emulated.
    """
    if not devices:
        own = jax.local_devices()
        devices = own[:1] if own[0].platform == "cpu" else own
    return Mesh(np.array(devices).reshape(-1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)


def spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> Spec:
    """The placement of one parameter.

    A dimension that an axis does not divide stays whole on that axis.

    Raises:
      ValueError: no rule matches the path.
    """
    if not shape:
        return Spec()
    for pattern, placement in RULES:
        if re.search(pattern, path):
            placement = placement[-len(shape) :] if placement else ()
            full = (None,) * (len(shape) - len(placement)) + placement
            return Spec(
                *(
                    axis if axis and size % mesh.shape[axis] == 0 else None
                    for axis, size in zip(full, shape, strict=True)
                )
            )
    raise ValueError(f"no sharding rule matches parameter {path!r} of shape {shape}")


def place(tree: Any, mesh: Mesh) -> Any:
    """NamedSharding for every leaf of a tree of arrays or shapes."""

    def one(path: tuple, leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(part, "key", getattr(part, "name", part))) for part in path)
        return NamedSharding(mesh, spec(name, tuple(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def put(tree: Any, mesh: Mesh) -> Any:
    """Move a tree of host arrays (the same on every host) to its place on the mesh."""
    return jax.tree.map(
        lambda leaf, where: jax.make_array_from_callback(
            np.shape(leaf), where, lambda index, leaf=leaf: np.asarray(leaf)[index]
        ),
        tree,
        place(tree, mesh),
    )


def to_device(rows: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """This host's rows of a batch become one global Batch.

    Pictures, B = P K rows, are split over data and fsdp. So is the text side, P rows, where it
    divides; where it does not, it is whole on every device, and the K samples of one prompt may lie
    on several. Of several hosts each brings P / hosts prompts, whole groups; their rows follow one
    another in the hosts' order and go to the devices that the mesh wants them on, another host's if
    need be: so P may be fewer than the devices here too, and tensor may reach across hosts.

    Args:
      rows: prompts and their pictures; text alone is split like pictures.
      mesh: the devices.

    Raises:
      ValueError: the rows of pictures, or of text alone, are not divisible by data x fsdp.
    """
    hosts, shards = jax.process_count(), mesh.shape["data"] * mesh.shape["fsdp"]
    numbers = {name: value.shape[0] * hosts for name, value in rows.items()}
    most, pictures = max(numbers.values()), numbers.keys() & {"images", "latents"}
    if most % shards:
        raise ValueError(
            f"data.prompts{' x data.samples' if pictures else ''} = {most} rows cannot be split "
            f"over {shards} devices (mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']})"
        )
    split, whole = NamedSharding(mesh, ROWS), replicated(mesh)
    places = {name: whole if number % shards else split for name, number in numbers.items()}
    return Batch(**jax.device_put(rows if hosts == 1 else _of_all_hosts(rows, mesh), places))


def _of_all_hosts(rows: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The rows of every host as global arrays, still on the devices of the host that read them."""
    devices = sorted(mesh.devices.flat, key=lambda device: (device.process_index, device.id))
    across = Mesh(np.array(devices).reshape(jax.process_count(), -1), ("hosts", "devices"))

    def one(value: np.ndarray) -> jax.Array:
        shared = ("hosts", "devices") if len(value) % across.shape["devices"] == 0 else "hosts"
        return jax.make_array_from_process_local_data(NamedSharding(across, Spec(shared)), value)

    return {name: one(value) for name, value in rows.items()}


def to_host(tree: Any) -> Any:
    """The arrays whole in this host's memory, one after the other.

    What lies on other hosts' devices alone comes over the network, so that all hosts have to ask.
    """

    def one(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(one, tree)


def constrain(x: jax.Array, placement: Spec = ROWS) -> jax.Array:
    """Pin an activation's placement at the end of a block; without a mesh nothing happens."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, placement)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device: for scalars and keys."""
    return NamedSharding(mesh, Spec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays whole on every device; those that are there already are not copied."""
    return jax.device_put(tree, replicated(mesh))
