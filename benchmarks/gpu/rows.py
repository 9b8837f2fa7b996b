"""What is raced, in the order of importance. Standard library only: everybody reads it."""

from typing import NamedTuple

from benchmarks.gpu.sizes import Sizes


class Row(NamedTuple):
    """One piece of work, the same on both sides."""

    name: str
    # (own_)ldm_train | own_ldm_muon_train | ae_train | sample | onestep | encode | decode
    kind: str
    batch: int
    unet: str = "12M"
    calls: int = 1  # of one batch each: a volume
    peer: str = ""  # another row that the peer runs instead; "-": ours alone
    attention: str = "cudnn"  # of ours, where it can be compiled


def rows(sizes: Sizes) -> list[Row]:
    large, small = sizes.batches
    one, some = sizes.sampled
    slices, chunk = sizes.volume
    calls = -(-slices // chunk)
    steps = sizes.ddim_steps
    volume = f"volume_{slices}"
    return [
        Row(f"ldm_train_12M_b{large}", "ldm_train", large),
        Row(f"ddim{steps}_b{one}", "sample", one),
        Row(f"own_ldm_train_12M_b{large}", "own_ldm_train", large, peer="-"),
        Row(f"own_ldm_muon_12M_b{large}", "own_ldm_muon_train", large, peer="-"),
        Row(f"own_ldm_xla_12M_b{large}", "own_ldm_train", large, peer="-", attention="xla"),
        Row(f"ldm_train_51M_b{large}", "ldm_train", large, "51M"),
        Row(f"{volume}_ddim{steps}", "sample", chunk, calls=calls),
        Row(f"{volume}_onestep", "onestep", chunk, calls=calls, peer=f"{volume}_ddim{steps}"),
        Row(f"ddim{steps}_b{some}", "sample", some),
        Row(f"ae_train_b{sizes.ae_batch}", "ae_train", sizes.ae_batch),
        Row(f"own_ldm_train_51M_b{large}", "own_ldm_train", large, "51M", peer="-"),
        Row(f"ldm_train_12M_b{small}", "ldm_train", small),
        Row(f"ldm_train_51M_b{small}", "ldm_train", small, "51M"),
        Row(f"encode_b{sizes.coded}", "encode", sizes.coded),
        Row(f"decode_b{sizes.coded}", "decode", sizes.coded),
    ]


def find(sizes: Sizes, name: str) -> Row:
    """Raises KeyError."""
    return {row.name: row for row in rows(sizes)}[name]
