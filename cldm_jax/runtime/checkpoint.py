"""Orbax checkpoints with a SHA-256 manifest, and a walk back past damaged ones.

Orbax writes atomically but restores flipped bits without a word, so every file's hash is written after
the save and checked before a restore. The only module that imports orbax.
"""

import logging
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from cldm_jax import files

MANIFEST = "sha256-{step}.json"
BEST = "best"  # folder beside "checkpoints": the step with the best validation, for inference


class Checkpoints:
    """Saves and restores a tree of arrays by step under `folder`; keeps the latest `keep`."""

    def __init__(self, folder, keep: int = 2):
        self.folder = pathlib.Path(folder).absolute()
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(n=keep),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                save_interval_steps=1,
            ),
        )

    def save(self, step: int, state) -> None:
        """Returns when the step is on disk with its manifest."""
        if step in self.manager.all_steps():
            return
        self.manager.save(step, args=ocp.args.StandardSave(state), force=True)
        self.manager.wait_until_finished()
        if jax.process_index() == 0:
            files.write_json(self.folder / MANIFEST.format(step=step), self._hashes(step))
            alive = set(self.manager.all_steps())
            for path in self.folder.glob("sha256-*.json"):
                if int(path.stem.removeprefix("sha256-")) not in alive:
                    path.unlink()

    def restore_latest(self, abstract):
        """(step, state) of the newest sound checkpoint, or None. Damaged ones are set aside, not deleted.

        abstract: a tree of ShapeDtypeStruct with shardings, or None for plain NumPy arrays in dicts.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            reason = self._damage(step)
            if reason is None:
                return step, self._restore(step, abstract)
            aside = self.folder / f"{step}.corrupt"
            logging.error("checkpoint %d is damaged (%s): set aside as %s", step, reason, aside)
            (self.folder / str(step)).rename(aside)
            self.manager.reload()
        return None

    def _restore(self, step: int, abstract):
        if abstract is None:
            # As NumPy arrays, whatever devices wrote them: a run is opened on other machines too.
            handler = ocp.PyTreeCheckpointHandler()
            with ocp.Checkpointer(handler) as checkpointer:
                path = self.folder / str(step) / "default"
                tree = handler.metadata(path).tree
                wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=wanted))
        return self.manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def _hashes(self, step: int) -> dict[str, str]:
        root = self.folder / str(step)
        paths = sorted(p for p in root.rglob("*") if p.is_file())
        return {str(p.relative_to(root)): files.sha256_file(p) for p in paths}

    def _damage(self, step: int) -> str | None:
        manifest = self.folder / MANIFEST.format(step=step)
        if not manifest.is_file():
            return "no manifest: the save was interrupted"
        expected, found = files.read_json(manifest), self._hashes(step)
        wrong = [name for name in expected if found.get(name) != expected[name]]
        return f"{len(wrong)} files differ from the manifest, first {wrong[0]}" if wrong else None

    def close(self) -> None:
        self.manager.close()


def restore_for_inference(folder) -> tuple[int, dict, dict] | None:
    """(step, EMA parameters, frozen constants) of the newest sound checkpoint as NumPy trees, or None."""
    if not pathlib.Path(folder).is_dir():
        return None
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore_latest(None)
    checkpoints.close()
    if found is None:
        return None
    step, tree = found
    return step, tree["ema_params"], tree.get("frozen") or {}
